// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains' consoles: what they print is kept, and a person can be connected.

use crate::exec::{Notify, yield_now};
use crate::rt::{Listener, Rt};
use crate::terminal::Terminal;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use backends::console::LOG_SIZE;
use core::cell::{Cell, RefCell};
use el1::mem::{self, Mapping};
use embassy_futures::select::{Either, select};
use guest_abi::{DomId, Errno, Gfn, Port};

/// Ctrl-].
const LEAVE: u8 = 0x1d;

type Link = Rc<RefCell<Option<(Mapping, Listener)>>>;

/// A ring. Its end takes page and port away at once; the task ends when it finds that.
struct Ring {
    link: Link,
    wake: Rc<Notify>,
}

/// One domain's console, of one or two rings.
struct Console {
    engine: RefCell<backends::console::Console>,
    /// Something was printed, or the console ended.
    changed: Notify,
    /// The port of the ring that printed last, which gets the input.
    current: Cell<u32>,
    rings: RefCell<Vec<Ring>>,
    ended: Cell<bool>,
    /// The domain has stopped, and prints no more.
    stopped: Cell<bool>,
}

impl Console {
    fn new() -> Result<Self, Errno> {
        let engine = backends::console::Console::new(LOG_SIZE).map_err(|_| Errno::ENOMEM)?;
        Ok(Self {
            engine: RefCell::new(engine),
            changed: Notify::default(),
            current: Cell::new(0),
            rings: RefCell::default(),
            ended: Cell::new(false),
            stopped: Cell::new(false),
        })
    }

    /// What was printed from `at` on, as far as it is kept; moves `at` behind it.
    fn since(&self, at: &mut u64) -> Vec<u8> {
        let engine = self.engine.borrow();
        let (a, b) = engine.log().since(*at);
        *at = engine.log().end();
        [a, b].concat()
    }

    /// Serves one of its rings; whether anything moved.
    fn pump(&self, page: &Mapping, port: &Listener) -> bool {
        let own = port.port().0;
        let mut engine = self.engine.borrow_mut();
        // A ring with impossible indices is left alone until they are possible again.
        let printed = engine.drain_output(&**page).unwrap_or(false);
        if printed || self.current.get() == 0 {
            self.current.set(own);
        }
        let typed = self.current.get() == own && engine.flush_input(&**page).unwrap_or(false);
        drop(engine);
        if printed {
            self.changed.notify();
        }
        if printed || typed {
            port.send();
        }
        printed || typed
    }

    fn wake(&self) {
        for ring in &*self.rings.borrow() {
            ring.wake.notify();
        }
    }
}

/// All consoles.
pub struct Consoles {
    rt: &'static Rt,
    terminal: Rc<Terminal>,
    all: RefCell<BTreeMap<DomId, Rc<Console>>>,
}

impl Consoles {
    /// None yet.
    #[must_use]
    pub fn new(rt: &'static Rt, terminal: Rc<Terminal>) -> Self {
        Self {
            rt,
            terminal,
            all: RefCell::default(),
        }
    }

    /// Serves a ring of a domain's: its console's, or its virtual UART's.
    pub fn start(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno> {
        let page = mem::map_foreign(dom, &[ring])?;
        let listener = self.rt.connect(dom, port)?;
        let known = self.all.borrow().get(&dom).cloned();
        let console = known.map_or_else(|| Console::new().map(Rc::new), Ok)?;
        self.all.borrow_mut().insert(dom, console.clone());
        let wake = listener.waker();
        let link: Link = Rc::new(RefCell::new(Some((page, listener))));
        console.rings.borrow_mut().push(Ring {
            link: link.clone(),
            wake: wake.clone(),
        });
        self.rt.spawn_for(dom, serve(self.rt, console, link, wake));
        Ok(())
    }

    /// Ends serving a domain, and forgets what it printed.
    pub fn stop(&self, dom: DomId) {
        if let Some(console) = self.all.borrow_mut().remove(&dom) {
            console.ended.set(true);
            console.changed.notify();
            for ring in console.rings.take() {
                ring.link.take();
                ring.wake.notify();
            }
        }
    }

    /// A domain has stopped: who is connected leaves once its last words are shown, also if the domain is kept.
    pub fn stopped(&self, dom: DomId) {
        let console = self.all.borrow().get(&dom).cloned();
        if let Some(console) = console.filter(|c| !c.stopped.replace(true)) {
            for ring in &*console.rings.borrow() {
                if let Some((page, port)) = &*ring.link.borrow() {
                    console.pump(page, port);
                }
            }
            console.changed.notify();
        }
    }

    /// Connects the terminal, until Ctrl-] or the domain's end. Begins with what is kept.
    pub async fn attach(&self, dom: DomId) -> Result<(), Errno> {
        let console = self.all.borrow().get(&dom).cloned().ok_or(Errno::ENOENT)?;
        let mut at = 0;
        let mut seen = console.changed.seen();
        loop {
            self.terminal.write_raw(&console.since(&mut at));
            if console.ended.get() || console.stopped.get() {
                break;
            }
            let changed = console.changed.changed(&mut seen);
            if let Either::Second(byte) = select(changed, self.terminal.read()).await {
                let mut typed = vec![byte];
                while typed.len() < 256
                    && let Some(b) = self.terminal.try_read()
                {
                    typed.push(b);
                }
                let leave = typed.iter().position(|&b| b == LEAVE);
                let (input, rest) = typed.split_at(leave.unwrap_or(typed.len()));
                console.engine.borrow_mut().push_input(input);
                console.wake();
                if let Some((_, rest)) = rest.split_first() {
                    self.terminal.untype(rest);
                    break;
                }
            }
        }
        self.terminal.write("\n");
        Ok(())
    }
}

async fn serve(rt: &'static Rt, console: Rc<Console>, link: Link, wake: Rc<Notify>) {
    let mut seen = wake.seen();
    loop {
        let moved = match &*link.borrow() {
            None => return,
            Some((page, port)) => {
                let moved = console.pump(page, port);
                (moved, port.judge(moved))
            }
        };
        let (moved, pause) = moved;
        if moved {
            yield_now().await;
            continue;
        }
        if pause > 0 {
            rt.sleep_ms(pause).await;
        }
        match &*link.borrow() {
            None => return,
            Some((_, port)) => port.open(),
        }
        wake.changed(&mut seen).await;
    }
}
