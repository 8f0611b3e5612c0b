// SPDX-License-Identifier: MIT OR Apache-2.0
//! One thread, many tasks: the executor, timers, and what tasks wait on.
//!
//! Each task is somebody's, this program's own or a domain's for which it works, and those whose tasks are ready get
//! equal times ([`Fair`]), whatever each of their tasks takes until it waits.
//!
//! A task runs until it has to wait. Between tasks the caller of [`Executor::run_one`] looks for
//! interrupts and due timers, which wake others; when there is nothing left it sleeps.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use backends::fair::Fair;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use spin::Mutex;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks to be run, by their numbers and by whose they are.
type Ready = Mutex<Fair<u16, usize>>;

/// Whose tasks are this program's own: everybody waits for what they do, so that they cost less.
pub const OWN: u16 = 0;
/// How much less.
const OWN_SHARE: u64 = 4;
/// What a turn costs at least, in nanoseconds: what is around it.
const TURN: u64 = 1000;

struct TaskWaker {
    task: usize,
    whose: u16,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.lock().push(self.whose, self.task);
        }
    }
}

struct Entry {
    waker: Arc<TaskWaker>,
    /// Taken out while it runs.
    task: Option<Task>,
}

/// The tasks.
#[derive(Default)]
pub struct Executor {
    tasks: RefCell<BTreeMap<usize, Entry>>,
    next: Cell<usize>,
    ready: Arc<Ready>,
}

impl Executor {
    /// Adds a task, which starts at one of the next [`Self::run_one`]; whose it is.
    pub fn spawn(&self, whose: u16, future: impl Future<Output = ()> + 'static) {
        let task = self.next.get();
        self.next.set(task.wrapping_add(1));
        let waker = Arc::new(TaskWaker {
            task,
            whose,
            queued: AtomicBool::new(false),
            ready: self.ready.clone(),
        });
        waker.wake_by_ref();
        self.tasks.borrow_mut().insert(
            task,
            Entry {
                waker,
                task: Some(Box::pin(future)),
            },
        );
    }

    /// Whether a task is ready to run.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.lock().is_empty()
    }

    /// Whether tasks of others than `whose` are ready to run.
    #[must_use]
    pub fn is_wanted(&self, whose: u16) -> bool {
        self.ready.lock().is_wanted(whose)
    }

    /// Charges somebody with nanoseconds beside those of tasks.
    pub fn charge(&self, whose: u16, ns: u64) {
        let cost = if whose == OWN { ns / OWN_SHARE } else { ns };
        self.ready.lock().charge(whose, cost);
    }

    /// Runs one ready task up to where it waits, by a clock in nanoseconds. False if there is none.
    pub fn run_one(&self, clock: impl Fn() -> u64) -> bool {
        let Some((whose, task)) = self.ready.lock().pop() else {
            return false;
        };
        let Some((waker, mut future)) = self.tasks.borrow_mut().get_mut(&task).and_then(|e| {
            e.waker.queued.store(false, Ordering::Release);
            Some((e.waker.clone(), e.task.take()?))
        }) else {
            return true;
        };
        let waker = Waker::from(waker);
        let begin = clock();
        let done = future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready();
        self.charge(whose, clock().saturating_sub(begin).saturating_add(TURN));
        if done {
            self.tasks.borrow_mut().remove(&task);
        } else if let Some(e) = self.tasks.borrow_mut().get_mut(&task) {
            e.task = Some(future);
        }
        true
    }

    /// The number of tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Whether there is no task.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Wakers to be called at a time, in nanoseconds.
#[derive(Default)]
pub struct Timers {
    due: RefCell<BTreeMap<(u64, u64), Waker>>,
    next: Cell<u64>,
}

impl Timers {
    /// Wakes whoever waits for a time that has come; the time of the next one.
    pub fn fire(&self, now: u64) -> Option<u64> {
        loop {
            let mut due = self.due.borrow_mut();
            let (&(at, n), _) = due.first_key_value()?;
            if at > now {
                return Some(at);
            }
            let waker = due.remove(&(at, n));
            drop(due);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Waits until a time has come.
    pub fn until(&self, at: u64) -> Sleep<'_> {
        Sleep {
            timers: self,
            at,
            key: None,
        }
    }
}

/// From [`Timers::until`].
pub struct Sleep<'a> {
    timers: &'a Timers,
    at: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep<'_> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut due = self.timers.due.borrow_mut();
        match self.key {
            // Fired: `fire` takes entries away.
            Some(key) if !due.contains_key(&key) => Poll::Ready(()),
            Some(key) => {
                due.insert(key, cx.waker().clone());
                Poll::Pending
            }
            None => {
                let n = self.timers.next.get();
                self.timers.next.set(n.wrapping_add(1));
                due.insert((self.at, n), cx.waker().clone());
                drop(due);
                self.key = Some((self.at, n));
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.due.borrow_mut().remove(&key);
        }
    }
}

/// Something that may have happened. Each waiter sees each [`Notify::notify`] at least once: one
/// that comes before the wait ends it at once.
#[derive(Default)]
pub struct Notify {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    /// It happened.
    pub fn notify(&self) {
        self.count.set(self.count.get().wrapping_add(1));
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// How often it has happened, to be given to [`Self::changed`].
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.count.get()
    }

    /// Waits until it has happened after `seen`, and sets that to now.
    pub fn changed<'a>(&'a self, seen: &'a mut u64) -> Changed<'a> {
        Changed { notify: self, seen }
    }
}

/// From [`Notify::changed`].
pub struct Changed<'a> {
    notify: &'a Notify,
    seen: &'a mut u64,
}

impl Future for Changed<'_> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.notify.count.get();
        if now != *self.seen {
            *self.seen = now;
            return Poll::Ready(());
        }
        let mut waiting = self.notify.waiting.borrow_mut();
        if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// A queue between tasks.
pub struct Queue<T> {
    items: RefCell<VecDeque<T>>,
    added: Notify,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            items: RefCell::new(VecDeque::new()),
            added: Notify::default(),
        }
    }
}

impl<T> Queue<T> {
    /// Adds an item.
    pub fn push(&self, item: T) {
        self.items.borrow_mut().push_back(item);
        self.added.notify();
    }

    /// The first item, if there is one.
    pub fn try_pop(&self) -> Option<T> {
        self.items.borrow_mut().pop_front()
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.borrow().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for the next item.
    pub async fn pop(&self) -> T {
        loop {
            let mut seen = self.added.seen();
            if let Some(item) = self.try_pop() {
                return item;
            }
            self.added.changed(&mut seen).await;
        }
    }
}

/// A lock that is held across waits.
#[derive(Default)]
pub struct AsyncMutex {
    held: Cell<bool>,
    freed: Notify,
}

impl AsyncMutex {
    /// Waits for it.
    pub async fn lock(self: &Rc<Self>) -> AsyncGuard {
        loop {
            let mut seen = self.freed.seen();
            if !self.held.replace(true) {
                return AsyncGuard(self.clone());
            }
            self.freed.changed(&mut seen).await;
        }
    }
}

/// Holds an [`AsyncMutex`].
pub struct AsyncGuard(Rc<AsyncMutex>);

impl Drop for AsyncGuard {
    fn drop(&mut self) {
        self.0.held.set(false);
        self.0.freed.notify();
    }
}

/// Lets every other ready task run once.
pub async fn yield_now() {
    let mut first = true;
    core::future::poll_fn(|cx| {
        if core::mem::take(&mut first) {
            cx.waker().wake_by_ref();
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(e: &Executor) {
        while e.run_one(|| 0) {}
    }

    /// Runs for `ns` of a clock that the tasks move on.
    fn run_for(e: &Executor, t: &Timers, clock: &Cell<u64>, ns: u64) {
        let end = clock.get() + ns;
        while clock.get() < end {
            let next = t.fire(clock.get());
            if !e.run_one(|| clock.get()) {
                clock.set(next.unwrap_or(end).max(clock.get()));
            }
        }
    }

    /// One who waits for a disk after each little thing that it has done for it, beside three of each kind that always
    /// have something to be done: it keeps half of its share of the processor, and is never kept waiting for longer than
    /// each of the others takes to have had as much, and one turn.
    #[test]
    fn a_neighbour_is_not_starved() {
        const WORK: u64 = 60_000;
        const DISK: u64 = 40_000;
        let passes = |attackers: &[u64]| {
            let e = Executor::default();
            let t: Rc<Timers> = Rc::default();
            let clock: Rc<Cell<u64>> = Rc::default();
            let (done, late) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(0_u64)));
            {
                let (t, clock) = (t.clone(), clock.clone());
                let (done, late) = (done.clone(), late.clone());
                e.spawn(1, async move {
                    loop {
                        clock.set(clock.get() + WORK);
                        done.set(done.get() + 1);
                        let due = clock.get() + DISK;
                        t.until(due).await;
                        late.set(late.get().max(clock.get() - due));
                    }
                });
            }
            for (n, &cost) in attackers.iter().enumerate() {
                // A guest has a ring for each of its devices.
                for _ in 0..8 {
                    let clock = clock.clone();
                    e.spawn(2 + n as u16, async move {
                        loop {
                            clock.set(clock.get() + cost);
                            yield_now().await;
                        }
                    });
                }
            }
            run_for(&e, &t, &clock, 1_000_000_000);
            (done.get(), late.get())
        };
        let (alone, _) = passes(&[]);
        for cost in [5_000, 50_000, 300_000] {
            let (beside, late) = passes(&[cost; 3]);
            // A fourth is its share, with what the others' turns are too long at most.
            assert!(
                beside * 8 >= alone,
                "{beside} of {alone} beside three whose turns take {cost} ns"
            );
            let most = 3 * (WORK + TURN + cost);
            assert!(late <= most, "{late} ns late beside turns of {cost} ns");
        }
    }

    #[test]
    fn tasks_run_wait_and_end() {
        let e = Executor::default();
        let q: Rc<Queue<u32>> = Rc::default();
        let seen: Rc<RefCell<Vec<u32>>> = Rc::default();
        {
            let (q, seen) = (q.clone(), seen.clone());
            e.spawn(OWN, async move {
                for _ in 0..3 {
                    let v = q.pop().await;
                    seen.borrow_mut().push(v);
                }
            });
        }
        run(&e);
        assert!(!e.is_ready());
        q.push(1);
        q.push(2);
        run(&e);
        assert_eq!(*seen.borrow(), [1, 2]);
        assert_eq!(e.len(), 1);
        q.push(3);
        run(&e);
        assert!(e.is_empty());
    }

    #[test]
    fn timers_fire_in_order_and_go_when_dropped() {
        let e = Executor::default();
        let t: Rc<Timers> = Rc::default();
        let order: Rc<RefCell<Vec<u32>>> = Rc::default();
        for (at, id) in [(30, 3), (10, 1), (20, 2)] {
            let (t, order) = (t.clone(), order.clone());
            e.spawn(OWN, async move {
                t.until(at).await;
                order.borrow_mut().push(id);
            });
        }
        run(&e);
        assert_eq!(t.fire(5), Some(10));
        run(&e);
        assert_eq!(t.fire(20), Some(30));
        run(&e);
        assert_eq!(*order.borrow(), [1, 2]);
        // A time that has passed ends at the next look.
        let s = t.until(1);
        drop(s);
        assert_eq!(t.fire(30), None);
        run(&e);
        assert_eq!(*order.borrow(), [1, 2, 3]);
    }

    #[test]
    fn a_notification_before_the_wait_is_not_lost() {
        let e = Executor::default();
        let n: Rc<Notify> = Rc::default();
        let done = Rc::new(Cell::new(0));
        {
            let (n, done) = (n.clone(), done.clone());
            let mut seen = n.seen();
            n.notify();
            e.spawn(OWN, async move {
                n.changed(&mut seen).await;
                done.set(1);
                n.changed(&mut seen).await;
                done.set(2);
            });
        }
        run(&e);
        assert_eq!(done.get(), 1);
        n.notify();
        run(&e);
        assert_eq!(done.get(), 2);
    }

    #[test]
    fn a_mutex_is_held_across_waits() {
        let e = Executor::default();
        let m: Rc<AsyncMutex> = Rc::default();
        let inside = Rc::new(Cell::new(0));
        for _ in 0..4 {
            let (m, inside) = (m.clone(), inside.clone());
            e.spawn(OWN, async move {
                let _g = m.lock().await;
                inside.set(inside.get() + 1);
                yield_now().await;
                assert_eq!(inside.get(), 1);
                inside.set(0);
            });
        }
        run(&e);
        assert!(e.is_empty());
    }
}
