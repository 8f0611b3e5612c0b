// SPDX-License-Identifier: MIT OR Apache-2.0
//! What files, firmware and guests' rings hold: device trees, kernels, configurations, xenstore's messages, a console.

use crate::{Input, Page};
use backends::console::{Console, LOG_SIZE};
use builder::image::ImageHeader;
use guest_abi::DomId;
use guest_abi::mem::SharedMem;
use platform::dt::Machine;
use toolstack::config::DomainConfig;
use xenstore::{Perm, Store};

/// A device tree: the bytes themselves, or those of a tree with a header that says so.
pub fn device_tree(data: &[u8]) {
    let mut blob = data.to_vec();
    let _ = Machine::parse(&mut blob);
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    // A header that is right, so that what is behind it is looked at.
    let size = (40 + rest.len()) as u32;
    let (structs, strings) = (56, 56 + u32::from(*kind) * 4);
    let header = [0xd00d_feed, size, structs, strings, 40, 17, 16, 0];
    let mut blob: Vec<u8> = header.iter().flat_map(|w: &u32| w.to_be_bytes()).collect();
    blob.extend(size.saturating_sub(strings).to_be_bytes());
    blob.extend(strings.saturating_sub(structs).min(size).to_be_bytes());
    blob.extend(rest);
    let _ = Machine::parse(&mut blob);
}

/// A kernel's first bytes, of a file of any size. One that is taken fits what it says.
pub fn image_header(data: &[u8]) {
    let mut input = Input(data);
    let size = input.u64() >> (input.u8() % 64);
    let mut head = input.0.to_vec();
    for magic in [false, true] {
        if magic && let Some(at) = head.get_mut(56..60) {
            at.copy_from_slice(b"ARM\x64");
        }
        if let Ok(h) = ImageHeader::parse(&head, size) {
            assert!(h.text_offset.checked_add(h.image_size).is_some());
        }
    }
}

/// A guest's configuration, with overrides. What is wrong has a place and a reason.
pub fn xl_config(data: &[u8]) {
    let mut input = Input(data);
    let over = usize::from(input.u8() % 40);
    let over = String::from_utf8_lossy(input.take(over)).into_owned();
    let text = String::from_utf8_lossy(input.0).into_owned();
    let overrides: &[&str] = if over.is_empty() { &[] } else { &[&over] };
    for text in [
        text.as_str(),
        &format!("name = \"a\"\nkernel = \"/k\"\n{text}\n"),
    ] {
        match DomainConfig::parse(text, "file", overrides) {
            Ok((config, _)) => assert!(!config.name.is_empty()),
            Err(e) => assert!(!e.to_string().is_empty()),
        }
    }
}

/// Two guests' messages, whole and in pieces, and what dom0 does meanwhile. What they hold stays within their quotas,
/// and nothing is left of them when they are gone.
pub fn xenstore(data: &[u8]) {
    let mut input = Input(data);
    let mut store = Store::new();
    let before = store.stats();
    for id in [1, 2] {
        let home = format!("/local/domain/{id}");
        let perms = [Perm::none(DomId(id)), Perm::read(DomId(3 - id))];
        assert!(store.mkdir(&home).is_ok() && store.set_perms(&home, &perms).is_ok());
        assert!(store.introduce(DomId(id)).is_ok());
    }
    let quota = *store.quota();
    while let Some(act) = input.act() {
        let id = DomId(1 + u16::from(act & 1));
        match act >> 1 {
            // A message whose head is right.
            0..100 => {
                let (kind, len) = (u32::from(input.u8() % 26), usize::from(input.u8()));
                let tx = u32::from(input.u8() % 4);
                let payload = input.take(len);
                let mut bytes = Vec::new();
                for word in [kind, 1, tx, payload.len() as u32] {
                    bytes.extend(word.to_le_bytes());
                }
                bytes.extend(payload);
                let _ = store.input(id, &bytes);
            }
            // Any bytes.
            100..110 => {
                let n = usize::from(input.u8());
                let _ = store.input(id, input.take(n));
            }
            110..120 => {
                let mut to = vec![0; usize::from(input.u8()) * 16];
                store.output(id, &mut to);
            }
            120..123 => {
                let value = input.u64().to_le_bytes();
                let _ = store.write(&format!("/local/domain/{id}/by-dom0/{act}"), &value);
            }
            123 => {
                assert!(store.introduce(id).is_ok());
            }
            _ => store.domain_shutdown(id),
        }
        let have = store.domain_stats(id);
        assert!(have.nodes <= quota.nodes && have.watches <= quota.watches);
        assert!(have.node_bytes + have.session_bytes <= quota.memory + 8192);
        let waiting = (quota.outstanding + 1) * 4112 + 4112 + quota.event_bytes;
        assert!(have.queued_bytes <= waiting + 4112);
    }
    assert_eq!(store.walk("/").count(), store.stats().nodes);
    for id in [1, 2] {
        assert!(store.release(DomId(id)).is_ok());
    }
    let _ = store.rm("/local");
    assert_eq!(store.stats(), before);
}

/// A guest writes its console's page, the back end moves what is there, somebody types. The log holds what it may.
pub fn console(data: &[u8]) {
    let mut input = Input(data);
    let page = Page::new(0);
    let Ok(mut console) = Console::new(LOG_SIZE) else {
        return;
    };
    while let Some(act) = input.act() {
        match act % 8 {
            0 | 1 => {
                let at = usize::from(input.u16() % 4096);
                let n = usize::from(input.u8());
                page.write(at, input.take(n));
            }
            // An index: the four words behind the two rings' bytes.
            2 | 3 => {
                let at = 3072 + usize::from(input.u8() % 4) * 4;
                let now = page.mem().load32(at);
                let by = input.u32() >> (input.u8() % 32);
                page.mem().store32(at, now.wrapping_add(by));
            }
            4 => {
                let n = usize::from(input.u8());
                let typed = input.take(n);
                assert!(console.push_input(typed) <= typed.len());
            }
            5 => {
                let _ = console.flush_input(&page.mem());
            }
            _ => {
                let _ = console.pump(&page.mem());
            }
        }
        let log = console.log();
        assert!(log.end() - log.start() <= LOG_SIZE as u64);
    }
}
