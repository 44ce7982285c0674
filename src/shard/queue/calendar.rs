//! Messages that wait for their time, by the millisecond.
//!
//! Those of one millisecond have no order: they are put in one when they are due. So a million that wait within a second are a thousand
//! lists, and one more is a short look-up and a place at the end of a list.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::cursor::Place;
use super::packed::tree_bytes;

/// Places of one list; then another begins, so that none is ever copied to grow beyond this.
const LIST_MAX: usize = 1_024;

/// Messages by the time before which they aren't delivered, ms since the Unix epoch.
#[derive(Debug, Default)]
pub struct Calendar {
    times: BTreeMap<i64, Waiting>,
    len: usize,
}

/// Messages of one time.
#[derive(Debug)]
enum Waiting {
    One(Place),
    More(Box<Lists>),
}

const _: () = assert!(size_of::<Waiting>() == 16, "a message with a time of its own takes 24 bytes and its share of a tree");

#[derive(Debug)]
struct Lists {
    /// Never empty.
    last: Vec<Place>,
    /// Those before it, all of them full.
    full: Vec<Vec<Place>>,
}

impl Lists {
    fn push(&mut self, place: Place) {
        if self.last.len() == LIST_MAX {
            self.full.push(std::mem::take(&mut self.last));
        }
        self.last.push(place);
    }

    /// Takes one out; none is left = it was the last.
    fn pop(&mut self) -> (Option<Place>, bool) {
        let place = self.last.pop();
        if self.last.is_empty() {
            self.last = self.full.pop().unwrap_or_default();
        }
        (place, self.last.is_empty())
    }

    fn iter(&self) -> impl Iterator<Item = Place> {
        self.full.iter().flatten().chain(&self.last).copied()
    }

    /// The slot of that message.
    fn find(&mut self, place: Place) -> Option<&mut Place> {
        self.full.iter_mut().flatten().chain(&mut self.last).find(|of| **of == place)
    }
}

impl Waiting {
    fn iter(&self) -> impl Iterator<Item = Place> {
        let (one, more) = match self {
            Waiting::One(place) => (Some(*place), None),
            Waiting::More(lists) => (None, Some(lists.iter())),
        };
        one.into_iter().chain(more.into_iter().flatten())
    }
}

impl Calendar {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What it takes of the memory, about.
    pub fn bytes(&self) -> usize {
        let tree = tree_bytes(self.times.len(), size_of::<(i64, Waiting)>());
        let in_lists =
            if self.len > self.times.len() { self.len * size_of::<Place>() * 3 / 2 + self.times.len() * size_of::<Lists>() } else { 0 };
        tree + in_lists
    }

    /// A message that isn't there waits until `due_ms`.
    pub fn insert(&mut self, due_ms: i64, place: Place) {
        self.len += 1;
        match self.times.entry(due_ms) {
            Entry::Vacant(entry) => {
                entry.insert(Waiting::One(place));
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Waiting::One(first) => {
                    let last = vec![*first, place];
                    *entry.get_mut() = Waiting::More(Box::new(Lists { last, full: Vec::new() }));
                }
                Waiting::More(lists) => lists.push(place),
            },
        }
    }

    /// The soonest time.
    pub fn first_due_ms(&self) -> Option<i64> {
        self.times.first_key_value().map(|(due_ms, _)| *due_ms)
    }

    /// Takes out those whose time has come, `most` at a time; those of one time in no order.
    pub fn take_due(&mut self, now_ms: i64, most: usize, mut due: impl FnMut(Place)) {
        let least = self.len.saturating_sub(most);
        while let Some(mut entry) = self.times.first_entry().filter(|entry| *entry.key() <= now_ms && self.len > least) {
            let is_last = match entry.get_mut() {
                Waiting::One(place) => {
                    due(*place);
                    self.len -= 1;
                    true
                }
                Waiting::More(lists) => loop {
                    let (place, is_last) = lists.pop();
                    place.into_iter().for_each(&mut due);
                    self.len -= 1;
                    if is_last || self.len == least {
                        break is_last;
                    }
                },
            };
            if is_last {
                entry.remove();
            }
        }
    }

    /// When a message is due that waits, and its place.
    pub fn find(&self, offset: u64) -> Option<(i64, Place)> {
        self.iter().find(|(_, place)| place.offset() == offset)
    }

    /// Takes one out, if it is there.
    pub fn remove(&mut self, due_ms: i64, place: Place) {
        let Entry::Occupied(mut entry) = self.times.entry(due_ms) else { return };
        let is_last = match entry.get_mut() {
            Waiting::One(of) if *of == place => true,
            Waiting::One(_) => return,
            Waiting::More(lists) => {
                let Some(last) = lists.last.last().copied() else { return };
                let Some(slot) = lists.find(place) else { return };
                *slot = last;
                lists.pop().1
            }
        };
        self.len -= 1;
        if is_last {
            entry.remove();
        }
    }

    /// Keeps those for which it holds.
    pub fn retain(&mut self, holds: impl Fn(Place) -> bool) {
        let all = std::mem::take(self);
        all.iter().filter(|(_, place)| holds(*place)).for_each(|(due_ms, place)| self.insert(due_ms, place));
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        *self = Calendar::default();
    }

    /// All, by time.
    pub fn iter(&self) -> impl Iterator<Item = (i64, Place)> {
        self.times.iter().flat_map(|(due_ms, waiting)| waiting.iter().map(|place| (*due_ms, place)))
    }

    /// Time and offset of at most `max` that wait, in that order, behind `after`.
    pub fn list(&self, after: Option<(i64, u64)>, max: usize) -> Vec<(i64, u64)> {
        let mut listed: Vec<(i64, u64)> = Vec::new();
        for (due_ms, waiting) in self.times.range(after.map_or(i64::MIN, |(due_ms, _)| due_ms)..) {
            let left = max - listed.len();
            if left == 0 {
                break;
            }
            let mut at_once: Vec<(i64, u64)> = Vec::new();
            let cut = |at_once: &mut Vec<(i64, u64)>| {
                if at_once.len() > left {
                    at_once.select_nth_unstable(left);
                    at_once.truncate(left);
                }
            };
            for at in waiting.iter().map(|place| (*due_ms, place.offset())).filter(|at| after.is_none_or(|after| *at > after)) {
                at_once.push(at);
                if at_once.len() == 2 * left + LIST_MAX {
                    cut(&mut at_once);
                }
            }
            cut(&mut at_once);
            at_once.sort_unstable();
            listed.append(&mut at_once);
        }
        listed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    proptest::proptest! {
        #[test]
        fn behaves_like_a_sorted_set(
            steps in proptest::collection::vec((0i64..5, 0u64..5_000, 0u8..4), 0..80),
            bulk in 0u64..3_000,
            (now_ms, most, max) in (0i64..6, 0usize..2_500, 0usize..2_500),
        ) {
            let (mut calendar, mut naive) = (Calendar::default(), BTreeSet::new());
            for (due_ms, offset, kind) in steps {
                let place = Place::new((offset % 3) as u8, offset);
                let is_new = !naive.iter().any(|(_, of)| *of == place);
                match kind {
                    0 => {
                        calendar.remove(due_ms, place);
                        naive.remove(&(due_ms, place));
                    }
                    _ if is_new => {
                        calendar.insert(due_ms, place);
                        naive.insert((due_ms, place));
                    }
                    _ => {}
                }
                assert_eq!((calendar.len(), calendar.first_due_ms()), (naive.len(), naive.first().map(|it| it.0)));
            }
            // More than one list of one time; some of a full one go.
            for offset in 10_000..10_000 + bulk {
                calendar.insert(3, Place::new(0, offset));
                naive.insert((3, Place::new(0, offset)));
            }
            for offset in (10_000..10_000 + bulk).step_by(7) {
                assert_eq!(calendar.find(offset), Some((3, Place::new(0, offset))));
                calendar.remove(3, Place::new(0, offset));
                naive.remove(&(3, Place::new(0, offset)));
            }
            assert_eq!(calendar.iter().collect::<BTreeSet<_>>(), naive);
            let listed: BTreeSet<(i64, u64)> = naive.iter().map(|(due_ms, place)| (*due_ms, place.offset())).collect();
            let after = listed.iter().nth(max / 3).copied();
            for after in [None, after, Some((2, 1))] {
                let expected = listed.iter().filter(|at| after.is_none_or(|after| **at > after)).take(max);
                assert!(calendar.list(after, max).iter().eq(expected));
            }
            let mut due = Vec::new();
            calendar.take_due(now_ms, most, |place| due.push(place));
            let all_due = naive.iter().filter(|(due_ms, _)| *due_ms <= now_ms).count();
            assert_eq!(due.len(), all_due.min(most));
            naive.retain(|(_, place)| !due.contains(place));
            assert_eq!(calendar.len(), naive.len());
            calendar.retain(|place| place.offset() % 2 == 0);
            naive.retain(|(_, place)| place.offset() % 2 == 0);
            assert_eq!(calendar.iter().collect::<BTreeSet<_>>(), naive);
        }
    }
}
