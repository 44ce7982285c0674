//! Dense table indexed by a number that is never reused, in pages, so that it neither moves when it grows
//! nor keeps the space of numbers long gone.

const PAGE_BITS: u32 = 10;
const PAGE_ENTRIES: usize = 1 << PAGE_BITS;

/// Values by number. A lookup is two loads; an empty page costs one pointer.
#[derive(Clone, Debug)]
pub struct IdTable<T> {
    pages: Vec<Option<Page<T>>>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Page<T> {
    entries: Box<[Option<T>]>,
    used: usize,
}

impl<T> Default for IdTable<T> {
    fn default() -> Self {
        IdTable { pages: Vec::new(), len: 0 }
    }
}

impl<T: Copy> IdTable<T> {
    /// The value of `id`.
    #[inline]
    pub fn get(&self, id: u32) -> Option<T> {
        let page = self.pages.get((id >> PAGE_BITS) as usize)?.as_ref()?;
        page.entries[id as usize & (PAGE_ENTRIES - 1)]
    }

    /// Sets it; the value it had.
    pub fn insert(&mut self, id: u32, value: T) -> Option<T> {
        let at = (id >> PAGE_BITS) as usize;
        if at >= self.pages.len() {
            self.pages.resize_with(at + 1, || None);
        }
        let page = self.pages[at].get_or_insert_with(|| Page { entries: vec![None; PAGE_ENTRIES].into_boxed_slice(), used: 0 });
        let old = page.entries[id as usize & (PAGE_ENTRIES - 1)].replace(value);
        if old.is_none() {
            page.used += 1;
            self.len += 1;
        }
        old
    }

    /// Forgets it; the value it had.
    pub fn remove(&mut self, id: u32) -> Option<T> {
        let slot = self.pages.get_mut((id >> PAGE_BITS) as usize)?;
        let page = slot.as_mut()?;
        let old = page.entries[id as usize & (PAGE_ENTRIES - 1)].take()?;
        page.used -= 1;
        self.len -= 1;
        if page.used == 0 {
            *slot = None;
        }
        Some(old)
    }

    /// The first entry whose number is at least `from`. Skips empty pages.
    pub fn next_from(&self, from: u32) -> Option<(u32, T)> {
        let first = (from >> PAGE_BITS) as usize;
        for (at, page) in self.pages.iter().enumerate().skip(first) {
            let Some(page) = page else { continue };
            let skip = if at == first { from as usize & (PAGE_ENTRIES - 1) } else { 0 };
            for (entry, value) in page.entries.iter().enumerate().skip(skip) {
                if let Some(value) = value {
                    return Some(((at << PAGE_BITS | entry) as u32, *value));
                }
            }
        }
        None
    }

    /// Every entry, in order of number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, T)> {
        let pages = self.pages.iter().enumerate().filter_map(|(at, page)| Some((at, page.as_ref()?)));
        pages.flat_map(|(at, page)| {
            page.entries.iter().enumerate().filter_map(move |(entry, value)| Some(((at << PAGE_BITS | entry) as u32, (*value)?)))
        })
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.len
    }
}
