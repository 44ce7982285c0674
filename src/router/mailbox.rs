//! Between cores: bounded rings, one pair in each direction of every pair of cores.
//!
//! ```text
//! core A                                        core B
//!   ask ──▶ [questions A→B] ──────────────────▶ poll_question
//!   poll_answer ◀──────────── [answers B→A] ◀── answer
//! ```
//! * A question that wants an answer is only sent while its answer is sure of a slot: at most as many are
//!   unanswered as the answer ring holds. So [`Mailboxes::answer`] never waits and two cores can't block each other.
//! * A full ring refuses the question: the connection that asked stops reading until answers come.
//! * A core that will look into its mailboxes anyway isn't woken; see [`Mailboxes::listen`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_utils::CachePadded;
use rtrb::{Consumer, Producer, PushError, RingBuffer};

use crate::device::wake::Waker;

/// Questions from one core to another that are on their way or unanswered.
pub const SLOTS: usize = 1024;

/// One core's end of all its mailboxes. `Q`: questions, `A`: answers.
pub struct Mailboxes<Q, A> {
    /// By core; this core's own place is empty.
    peers: Vec<Option<Peer<Q, A>>>,
    bell: Arc<Bell>,
    /// Where the next poll begins, so that no peer is always served first.
    turn: usize,
}

struct Peer<Q, A> {
    questions_out: Producer<Q>,
    questions_in: Consumer<Q>,
    answers_out: Producer<A>,
    answers_in: Consumer<A>,
    /// Asked, and the answer not taken out yet: the slots reserved in `answers_in`. At most `SLOTS`.
    unanswered: usize,
    /// Told while the ring was full. Few: catalog changes and closed connections.
    overflow: VecDeque<Q>,
    bell: Arc<Bell>,
    /// Something was put in since the bell was last rung.
    is_due: bool,
}

/// How the others know whether a core must be woken.
struct Bell {
    /// The core may go to sleep without another look into its mailboxes.
    is_listening: CachePadded<AtomicBool>,
    waker: Waker,
}

/// The mailboxes of all cores; `wakers` by core.
pub fn mesh<Q, A>(wakers: Vec<Waker>) -> Vec<Mailboxes<Q, A>> {
    mesh_with_slots(wakers, SLOTS)
}

fn mesh_with_slots<Q, A>(wakers: Vec<Waker>, slots: usize) -> Vec<Mailboxes<Q, A>> {
    let bells: Vec<Arc<Bell>> =
        wakers.into_iter().map(|waker| Arc::new(Bell { is_listening: CachePadded::new(AtomicBool::new(true)), waker })).collect();
    let count = bells.len();
    let mut all: Vec<Mailboxes<Q, A>> =
        bells.iter().map(|bell| Mailboxes { peers: (0..count).map(|_| None).collect(), bell: bell.clone(), turn: 0 }).collect();
    for a in 0..count {
        for b in a + 1..count {
            let (questions_ab, questions_ab_end) = RingBuffer::new(slots);
            let (questions_ba, questions_ba_end) = RingBuffer::new(slots);
            let (answers_ab, answers_ab_end) = RingBuffer::new(slots);
            let (answers_ba, answers_ba_end) = RingBuffer::new(slots);
            all[a].peers[b] = Some(Peer::new(questions_ab, questions_ba_end, answers_ab, answers_ba_end, bells[b].clone()));
            all[b].peers[a] = Some(Peer::new(questions_ba, questions_ab_end, answers_ba, answers_ab_end, bells[a].clone()));
        }
    }
    all
}

impl<Q, A> Peer<Q, A> {
    fn new(
        questions_out: Producer<Q>,
        questions_in: Consumer<Q>,
        answers_out: Producer<A>,
        answers_in: Consumer<A>,
        bell: Arc<Bell>,
    ) -> Peer<Q, A> {
        Peer { questions_out, questions_in, answers_out, answers_in, unanswered: 0, overflow: VecDeque::new(), bell, is_due: false }
    }

    fn drain_overflow(&mut self) {
        while let Some(question) = self.overflow.pop_front() {
            if let Err(PushError::Full(question)) = self.questions_out.push(question) {
                self.overflow.push_front(question);
                return;
            }
            self.is_due = true;
        }
    }
}

impl<Q, A> Mailboxes<Q, A> {
    /// Cores, this one included.
    pub fn cores(&self) -> usize {
        self.peers.len()
    }

    /// Sends a question and reserves the slot of its answer. Full = the question comes back; try again after an answer.
    ///
    /// # Panics
    /// If `to` is this core or none.
    pub fn ask(&mut self, to: u16, question: Q) -> Result<(), Q> {
        let peer = self.peer(to);
        peer.drain_overflow();
        // What was told first is delivered first.
        if !peer.overflow.is_empty() || peer.unanswered >= peer.answers_in.buffer().capacity() {
            return Err(question);
        }
        peer.questions_out.push(question).map_err(|PushError::Full(question)| question)?;
        peer.unanswered += 1;
        peer.is_due = true;
        Ok(())
    }

    /// Sends what needs no answer, in order with the questions. For rare things whose number is bounded elsewhere.
    ///
    /// # Panics
    /// If `to` is this core or none.
    pub fn tell(&mut self, to: u16, question: Q) {
        let peer = self.peer(to);
        peer.overflow.push_back(question);
        peer.drain_overflow();
    }

    /// Answers a question that was asked (not told). Never full: the asker has kept the slot free.
    ///
    /// # Panics
    /// If more answers are given than questions were asked.
    pub fn answer(&mut self, to: u16, answer: A) {
        let peer = self.peer(to);
        assert!(peer.answers_out.push(answer).is_ok(), "an answer without a reserved slot");
        peer.is_due = true;
    }

    /// The next question of any peer, and whose.
    pub fn poll_question(&mut self) -> Option<(u16, Q)> {
        self.poll(|peer| peer.questions_in.pop().ok())
    }

    /// The next answer of any peer.
    pub fn poll_answer(&mut self) -> Option<(u16, A)> {
        self.poll(|peer| {
            let answer = peer.answers_in.pop().ok()?;
            peer.unanswered -= 1;
            Some(answer)
        })
    }

    /// Wakes the peers that were sent something and would sleep over it. Once at the end of a turn.
    pub fn ring(&mut self) {
        for peer in self.peers.iter_mut().flatten() {
            peer.drain_overflow();
            if std::mem::take(&mut peer.is_due) {
                // Pairs with the fence in `listen`: either we see that it listens, or it sees what we pushed.
                fence(Ordering::SeqCst);
                if peer.bell.is_listening.load(Ordering::Relaxed) {
                    peer.bell.waker.wake();
                }
            }
        }
    }

    /// This core will poll before it sleeps: senders needn't wake it.
    pub fn attend(&self) {
        self.bell.is_listening.store(false, Ordering::Relaxed);
    }

    /// This core may sleep from now on: senders wake it. True = something has come already, so poll again first.
    pub fn listen(&self) -> bool {
        self.bell.is_listening.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.peers.iter().flatten().any(|peer| !peer.questions_in.is_empty() || !peer.answers_in.is_empty())
    }

    /// Questions sent and unanswered, over all peers; for metrics.
    pub fn unanswered(&self) -> usize {
        self.peers.iter().flatten().map(|peer| peer.unanswered).sum()
    }

    /// Questions and answers waiting to be polled here; for metrics.
    pub fn waiting(&self) -> usize {
        self.peers.iter().flatten().map(|peer| peer.questions_in.slots() + peer.answers_in.slots()).sum()
    }

    fn peer(&mut self, core: u16) -> &mut Peer<Q, A> {
        self.peers[usize::from(core)].as_mut().expect("a mailbox leads to another core")
    }

    fn poll<T>(&mut self, mut take: impl FnMut(&mut Peer<Q, A>) -> Option<T>) -> Option<(u16, T)> {
        let count = self.peers.len();
        for step in 0..count {
            let core = (self.turn + step) % count;
            if let Some(taken) = self.peers[core].as_mut().and_then(&mut take) {
                // Stay with this peer for the next poll: its ring is warm. `turn` moves on when it is empty.
                self.turn = core;
                return Some((core as u16, taken));
            }
        }
        self.turn = (self.turn + 1) % count.max(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_utils::Backoff;

    fn pair(slots: usize) -> (Mailboxes<u64, u64>, Mailboxes<u64, u64>) {
        let wakers = (0..2).map(|_| Waker::eventfd().unwrap().0).collect();
        let mut all = mesh_with_slots(wakers, slots);
        let b = all.pop().unwrap();
        (all.pop().unwrap(), b)
    }

    #[test]
    fn questions_and_answers_arrive_in_order() {
        let (mut a, mut b) = pair(8);
        for n in 0..5 {
            a.ask(1, n).unwrap();
        }
        let mut got = Vec::new();
        while let Some((from, n)) = b.poll_question() {
            assert_eq!(from, 0);
            b.answer(0, n * 10);
            got.push(n);
        }
        assert_eq!(got, [0, 1, 2, 3, 4]);
        let answers: Vec<u64> = std::iter::from_fn(|| a.poll_answer()).map(|(_, n)| n).collect();
        assert_eq!(answers, [0, 10, 20, 30, 40]);
    }

    #[test]
    fn question_without_a_free_answer_slot_is_refused_until_an_answer_is_taken() {
        let (mut a, mut b) = pair(2);
        a.ask(1, 1).unwrap();
        a.ask(1, 2).unwrap();
        assert_eq!(a.ask(1, 3), Err(3));
        // The question ring is empty again, the answer slots aren't free: still refused.
        while let Some((_, n)) = b.poll_question() {
            b.answer(0, n);
        }
        assert_eq!(a.ask(1, 3), Err(3));
        assert_eq!(a.poll_answer(), Some((1, 1)));
        a.ask(1, 3).unwrap();
        assert_eq!(a.unanswered(), 2);
    }

    #[test]
    fn full_rings_in_both_directions_still_take_every_answer() {
        let (mut a, mut b) = pair(4);
        for n in 0..4 {
            a.ask(1, n).unwrap();
            b.ask(0, n).unwrap();
        }
        assert!(a.ask(1, 9).is_err() && b.ask(0, 9).is_err());
        for _ in 0..4 {
            let (_, n) = a.poll_question().unwrap();
            a.answer(1, n);
            let (_, n) = b.poll_question().unwrap();
            b.answer(0, n);
        }
        assert_eq!(std::iter::from_fn(|| a.poll_answer()).count(), 4);
        assert_eq!(std::iter::from_fn(|| b.poll_answer()).count(), 4);
    }

    #[test]
    fn told_beyond_the_ring_arrives_later_and_in_order() {
        let (mut a, mut b) = pair(2);
        for n in 0..5 {
            a.tell(1, n);
        }
        assert_eq!(a.ask(1, 9), Err(9), "a question doesn't overtake what was told");
        let mut got = Vec::new();
        for _ in 0..5 {
            while let Some((_, n)) = b.poll_question() {
                got.push(n);
            }
            a.ring();
        }
        assert_eq!(got, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn listening_core_is_woken_attending_core_is_not() {
        let (waker, reader) = Waker::eventfd().unwrap();
        let mut all = mesh_with_slots::<u64, u64>(vec![Waker::eventfd().unwrap().0, waker.clone()], 4);
        let (b, a) = (all.pop().unwrap(), &mut all[0]);
        let is_woken = || {
            let woken = crate::device::wake::wait(&waker, std::os::fd::AsFd::as_fd(&reader), std::time::Duration::ZERO).unwrap();
            waker.rearm();
            woken
        };
        b.attend();
        a.ask(1, 1).unwrap();
        a.ring();
        assert!(!is_woken());
        assert!(b.listen(), "it came before: poll again instead of sleeping");
        a.ask(1, 2).unwrap();
        a.ring();
        assert!(is_woken());
        a.ring();
        assert!(!is_woken(), "nothing new");
    }

    #[test]
    fn two_threads_exchange_everything_once_and_in_order() {
        const COUNT: u64 = 20_000;
        let (mut a, mut b) = pair(16);
        let other = std::thread::spawn(move || {
            let (mut expected, backoff) = (0, Backoff::new());
            while expected < COUNT {
                match b.poll_question() {
                    Some((_, n)) => {
                        assert_eq!(n, expected);
                        expected += 1;
                        b.answer(0, n + 1);
                        b.ring();
                        backoff.reset();
                    }
                    None => backoff.snooze(),
                }
            }
        });
        let (mut asked, mut answered, backoff) = (0, 0, Backoff::new());
        while answered < COUNT {
            while asked < COUNT && a.ask(1, asked).is_ok() {
                asked += 1;
            }
            a.ring();
            match a.poll_answer() {
                Some((_, n)) => {
                    answered += 1;
                    assert_eq!(n, answered);
                    backoff.reset();
                }
                None => backoff.snooze(),
            }
        }
        other.join().unwrap();
        assert_eq!(a.unanswered(), 0);
    }
}
