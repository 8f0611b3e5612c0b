// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device that tests play: it sees the queues' memory as a device does, and may write there what it likes.

use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A part of what the driver gave: address, length, whether the device writes it.
pub type Part = (u64, usize, bool);

#[derive(Clone, Copy, Default)]
struct Ring {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    /// How far the device is, each way.
    taken: u16,
    given: u16,
}

/// The device.
#[derive(Default)]
pub struct Device {
    pub offered: u64,
    pub accepted: u64,
    pub config: Vec<u8>,
    pub status: u32,
    /// What the next interrupt is for.
    pub interrupt: u32,
    pub resets: usize,
    rings: [Ring; 2],
    /// What it does when it is told of a queue.
    pub act: Option<fn(&mut Device, u16)>,
}

/// The driver's way to it; dropped, it resets the device.
pub struct Fake(Rc<RefCell<Device>>);

/// A device with these features and this configuration space.
pub fn device(offered: u64, config: &[u8]) -> (Rc<RefCell<Device>>, Fake) {
    let device = Rc::new(RefCell::new(Device {
        offered,
        config: config.into(),
        ..Device::default()
    }));
    (device.clone(), Fake(device))
}

/// Reads what the driver gave the device.
pub fn peek<T: FromBytes>(at: u64) -> T {
    // SAFETY: an address that the driver gave for this, which it keeps until it has it back.
    unsafe { (at as *const T).read_unaligned() }
}

/// Writes there.
pub fn poke<T: IntoBytes>(at: u64, value: T) {
    // SAFETY: as `peek`.
    unsafe { (at as *mut T).write_unaligned(value) }
}

impl Device {
    /// The next of what the driver gave: its token, and its parts.
    pub fn take(&mut self, queue: u16) -> Option<(u16, Vec<Part>)> {
        let ring = &mut self.rings[usize::from(queue)];
        if ring.available == 0 || ring.taken == peek(ring.available + 2) {
            return None;
        }
        let slot = u64::from(ring.taken % ring.size);
        ring.taken = ring.taken.wrapping_add(1);
        let token: u16 = peek(ring.available + 4 + 2 * slot);
        let (mut parts, mut next) = (Vec::new(), token);
        let mut table = ring.descriptors;
        loop {
            let at = table + 16 * u64::from(next);
            let (address, len, flags): (u64, u32, u16) = (peek(at), peek(at + 8), peek(at + 12));
            if flags & 4 != 0 {
                (table, next) = (address, 0);
                continue;
            }
            parts.push((address, len as usize, flags & 2 != 0));
            if flags & 1 == 0 {
                return Some((token, parts));
            }
            next = peek(at + 14);
        }
    }

    /// Says that it is done with something.
    pub fn give(&mut self, queue: u16, token: u32, len: u32) {
        let ring = &mut self.rings[usize::from(queue)];
        let at = ring.used + 4 + 8 * u64::from(ring.given % ring.size);
        poke(at, token);
        poke(at + 4, len);
        ring.given = ring.given.wrapping_add(1);
        poke(ring.used + 2, ring.given);
    }

    /// Says that it is done with so many things more than it is.
    pub fn jump(&mut self, queue: u16, by: u16) {
        let ring = &mut self.rings[usize::from(queue)];
        ring.given = ring.given.wrapping_add(by);
        poke(ring.used + 2, ring.given);
    }

    /// Puts bytes into the next buffer of the driver's, as far as they go in; its token.
    pub fn fill(&mut self, queue: u16, bytes: &[u8]) -> Option<u16> {
        let (token, parts) = self.take(queue)?;
        let room = parts
            .iter()
            .filter(|p| p.2)
            .flat_map(|p| p.0..p.0 + p.1 as u64);
        for (at, byte) in room.zip(bytes) {
            poke(at, *byte);
        }
        Some(token)
    }

    /// The bytes of the next thing that it is to read, which it is done with then.
    pub fn read(&mut self, queue: u16) -> Option<Vec<u8>> {
        let (token, parts) = self.take(queue)?;
        let all = parts
            .iter()
            .filter(|p| !p.2)
            .flat_map(|p| p.0..p.0 + p.1 as u64);
        let bytes = all.map(peek).collect();
        self.give(queue, token.into(), 0);
        Some(bytes)
    }
}

impl Transport for Fake {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }
    fn read_device_features(&mut self) -> u64 {
        self.0.borrow().offered
    }
    fn write_driver_features(&mut self, features: u64) {
        self.0.borrow_mut().accepted = features;
    }
    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        1024
    }
    fn notify(&mut self, queue: u16) {
        let mut device = self.0.borrow_mut();
        if let Some(act) = device.act {
            act(&mut device, queue);
        }
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.0.borrow().status)
    }
    fn set_status(&mut self, status: DeviceStatus) {
        let mut device = self.0.borrow_mut();
        device.status = status.bits();
        device.resets += usize::from(status.is_empty());
    }
    fn set_guest_page_size(&mut self, _size: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        available: PhysAddr,
        used: PhysAddr,
    ) {
        self.0.borrow_mut().rings[usize::from(queue)] = Ring {
            size: size as u16,
            descriptors,
            available,
            used,
            ..Ring::default()
        };
    }
    fn queue_unset(&mut self, queue: u16) {
        self.0.borrow_mut().rings[usize::from(queue)] = Ring::default();
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.borrow().rings[usize::from(queue)].size != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        let what = core::mem::take(&mut self.0.borrow_mut().interrupt);
        InterruptStatus::from_bits_retain(what)
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, at: usize) -> Result<T, Error> {
        let device = self.0.borrow();
        let bytes = device.config.get(at..at + size_of::<T>());
        let value = bytes.and_then(|b| T::read_from_bytes(b).ok());
        value.ok_or(Error::ConfigSpaceTooSmall)
    }
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _at: usize,
        _value: T,
    ) -> Result<(), Error> {
        Err(Error::Unsupported)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.set_status(DeviceStatus::empty());
    }
}
