use proptest::prelude::*;

use super::*;

fn header_bytes(size: u32, flags: u32) -> [u8; HEADER_BYTES] {
    Header { id: 7, command: command::REGION_READ, size, flags, error: 0 }.encode()
}

#[test]
fn header_sizes_and_types() {
    for size in [16, 17, MAX_MESSAGE_BYTES as u32] {
        assert_eq!(Header::decode(&header_bytes(size, 0)).unwrap().body_bytes(), size as usize - 16);
    }
    for size in [0, 1, 15, MAX_MESSAGE_BYTES as u32 + 1, u32::MAX] {
        assert!(Header::decode(&header_bytes(size, 0)).is_err(), "{size}");
    }
    for kind in 2..16 {
        assert!(Header::decode(&header_bytes(16, kind)).is_err(), "type {kind}");
    }
    let header = Header::decode(&header_bytes(16, flags::REPLY | flags::ERROR | 1 << 9)).unwrap();
    assert_eq!(header.message_type(), MessageType::Reply);
    assert!(header.is_error() && header.wants_reply());
    assert_eq!(header.unknown_flags(), 1 << 9);
    assert!(!Header::decode(&header_bytes(16, flags::NO_REPLY)).unwrap().wants_reply());
}

#[test]
fn replies_carry_identity_and_length() {
    let command = Header::decode(&header_bytes(48, 0)).unwrap();
    let reply = command.reply(&[&[1, 2], &[3]]);
    assert_eq!(reply.len(), 19);
    let header = Header::decode(reply.first_chunk().unwrap()).unwrap();
    assert_eq!((header.id, header.command, header.size, header.flags), (7, command::REGION_READ, 19, flags::REPLY));
    let error = command.error_reply(22);
    let header = Header::decode(error.first_chunk().unwrap()).unwrap();
    assert_eq!((error.len(), header.error, header.is_error()), (16, 22, true));
}

fn le(values: &[u64], widths: &[usize]) -> Vec<u8> {
    values.iter().zip(widths).flat_map(|(v, w)| v.to_le_bytes().into_iter().take(*w)).collect()
}

fn version(json: &str) -> Vec<u8> {
    let mut body = le(&[0, 1], &[2, 2]);
    body.extend(json.bytes());
    body.push(0);
    body
}

fn dma_map() -> Vec<u8> {
    le(&[32, 3, 0x1000, 0x20_0000, 0x4000], &[4, 4, 8, 8, 8])
}

fn dma_unmap() -> Vec<u8> {
    le(&[24, 0, 0x20_0000, 0x4000], &[4, 4, 8, 8])
}

fn set_irqs() -> Vec<u8> {
    let mut body = le(&[23, 0x22, 2, 1, 3], &[4; 5]);
    body.extend([1, 0, 1]);
    body
}

fn region_write() -> Vec<u8> {
    let mut body = le(&[0x1000, 0, 4], &[8, 4, 4]);
    body.extend([1, 2, 3, 4]);
    body
}

fn write_multi() -> Vec<u8> {
    let mut body = le(&[2], &[8]);
    body.extend(le(&[0x1000, 0, 4, 5], &[8, 4, 4, 8]));
    body.extend(le(&[0x1008, 0, 8, u64::MAX], &[8, 4, 4, 8]));
    body
}

/// Whether a body is taken, by every decoder of fixed form.
type Decoder = (&'static str, Vec<u8>, fn(&[u8]) -> bool);

fn exact() -> Vec<Decoder> {
    vec![
        ("DMA_MAP", dma_map(), |b| DmaMap::decode(b).is_ok()),
        ("DMA_UNMAP", dma_unmap(), |b| DmaUnmap::decode(b).is_ok()),
        ("SET_IRQS", set_irqs(), |b| SetIrqs::decode(b).is_ok()),
        ("REGION_READ", le(&[0, 7, 4], &[8, 4, 4]), |b| RegionAccess::decode_read(b).is_ok()),
        ("REGION_WRITE", region_write(), |b| RegionAccess::decode_write(b).is_ok()),
        ("REGION_WRITE_MULTI", write_multi(), |b| decode_write_multi(b).is_ok()),
    ]
}

#[test]
fn every_truncation_and_every_longer_body_is_refused() {
    for (name, body, takes) in exact() {
        assert!(takes(&body), "{name} as it should be");
        for len in 0..body.len() {
            assert!(!takes(&body[..len]), "{name} of {len} bytes");
        }
        for more in [1, 3, 4, 8, 24] {
            let mut longer = body.clone();
            longer.extend(vec![0; more]);
            assert!(!takes(&longer), "{name} with {more} bytes more");
        }
    }
    // The kernel's structures grow: these take a longer body, not a shorter one.
    for len in 0..16 {
        let body = le(&[16, 0, 0, 0], &[4; 4]);
        assert!(DeviceInfo::check_request(&body[..len]).is_err());
        assert!(IrqInfo::decode_request(&body[..len]).is_err());
    }
    let body = le(&[32, 0, 3, 0, 0, 0], &[4, 4, 4, 4, 8, 8]);
    (0..32).for_each(|len| assert!(RegionInfoRequest::decode(&body[..len]).is_err()));
    assert_eq!(RegionInfoRequest::decode(&body).unwrap().index, 3);
}

#[test]
fn argsz_has_to_have_room() {
    assert!(DeviceInfo::check_request(&le(&[15, 0, 0, 0], &[4; 4])).is_err());
    assert!(DeviceInfo::check_request(&le(&[24, 0, 0, 0, 0, 0], &[4; 6])).is_ok());
    assert!(IrqInfo::decode_request(&le(&[15, 0, 2, 0], &[4; 4])).is_err());
    assert!(RegionInfoRequest::decode(&le(&[31, 0, 0, 0, 0, 0], &[4, 4, 4, 4, 8, 8])).is_err());
    assert!(DmaMap::decode(&le(&[31, 3, 0, 0, 0x1000], &[4, 4, 8, 8, 8])).is_err());
    assert!(DmaUnmap::decode(&le(&[23, 0, 0, 0x1000], &[4, 4, 8, 8])).is_err());
    assert!(SetIrqs::decode(&le(&[19, 0x21, 2, 0, 0], &[4; 5])).is_err());
}

#[test]
fn flags_of_dma() {
    for flags in 0..64u64 {
        let takes = DmaMap::decode(&le(&[32, flags, 0, 0, 0x1000], &[4, 4, 8, 8, 8])).is_ok();
        assert_eq!(takes, flags & !15 == 0 && flags & 3 != 0, "DMA_MAP {flags:#x}");
        let takes = DmaUnmap::decode(&le(&[24, flags, 0, 0x1000], &[4, 4, 8, 8])).is_ok();
        assert_eq!(takes, flags & !2 == 0, "DMA_UNMAP {flags:#x}");
    }
    assert!(DmaUnmap::decode(&le(&[24, 2, 0, 0], &[4, 4, 8, 8])).unwrap().all());
    assert!(DmaUnmap::decode(&le(&[24, 0, 0, 0], &[4, 4, 8, 8])).is_err(), "nothing");
    for (offset, address, size) in [(0, 0, 0), (0, u64::MAX, 2), (u64::MAX, 0, 2)] {
        assert!(DmaMap::decode(&le(&[32, 3, offset, address, size], &[4, 4, 8, 8, 8])).is_err());
    }
    let unmap = DmaUnmap::decode(&dma_unmap()).unwrap();
    assert_eq!(unmap.encode(), dma_unmap(), "the answer is what was asked");
}

#[test]
fn flags_of_interrupts() {
    for flags in 0..256u64 {
        let data: u64 = flags & 7;
        let action: u64 = flags >> 3 & 7;
        let body = le(&[20, flags, 2, 0, 0], &[4; 5]);
        let one_each = data.count_ones() == 1 && action.count_ones() == 1 && flags < 64;
        assert_eq!(SetIrqs::decode(&body).is_ok(), one_each, "{flags:#x}");
    }
    assert!(SetIrqs::decode(&le(&[20, 0x21, 2, u64::from(u32::MAX), 1], &[4; 5])).is_err(), "overflow");
    assert!(SetIrqs::decode(&le(&[20, 0x22, 2, 0, u64::from(u32::MAX)], &[4; 5])).is_err(), "bools that are not there");
    let body = set_irqs();
    let set = SetIrqs::decode(&body).unwrap();
    assert_eq!((set.start, set.count, set.data), (1, 3, IrqData::Bools(&[1, 0, 1])));
}

#[test]
fn counts_of_accesses() {
    for (count, fits) in [(0, false), (1, true), (MAX_DATA_BYTES as u64, true), (MAX_DATA_BYTES as u64 + 1, false)] {
        assert_eq!(RegionAccess::decode_read(&le(&[0, 0, count], &[8, 4, 4])).is_ok(), fits, "{count}");
    }
    assert!(RegionAccess::decode_read(&le(&[u64::MAX, 0, 1], &[8, 4, 4])).is_err(), "overflow");
    let body = region_write();
    let (access, data) = RegionAccess::decode_write(&body).unwrap();
    assert_eq!((access.offset, data), (0x1000, &[1u8, 2, 3, 4][..]));
    let writes = decode_write_multi(&write_multi()).unwrap();
    assert_eq!(writes.iter().map(|w| w.data().to_vec()).collect::<Vec<_>>(), [vec![5, 0, 0, 0], vec![0xff; 8]]);
    for count in [0, 9, u64::from(u32::MAX)] {
        let mut body = le(&[1], &[8]);
        body.extend(le(&[0, 0, count, 0], &[8, 4, 4, 8]));
        assert!(decode_write_multi(&body).is_err(), "one write of {count} bytes");
    }
    assert!(decode_write_multi(&le(&[u64::MAX], &[8])).is_err());
    assert!(decode_write_multi(&le(&[0x0aaa_aaaa_aaaa_aaab], &[8])).is_err(), "times 24 overflows");
    assert_eq!(decode_write_multi(&le(&[0], &[8])).unwrap(), []);
}

#[test]
fn capabilities() {
    let of = |json: &str| Version::decode(&version(json)).map(|v| v.capabilities.max_data_bytes);
    assert_eq!(of(""), Ok(MAX_DATA_BYTES));
    assert_eq!(of("{}"), Ok(MAX_DATA_BYTES));
    assert_eq!(of(r#"{"capabilities":{"max_data_xfer_size":4096,"later":[{}]},"more":1}"#), Ok(4096));
    assert_eq!(of(r#"{"capabilities":{"max_data_xfer_size":67108864}}"#), Ok(MAX_DATA_BYTES), "ours is the cap");
    for bad in ["[]", "{", "nul", r#"{"capabilities":1}"#, r#"{"capabilities":{"max_data_xfer_size":0}}"#] {
        assert!(of(bad).is_err(), "{bad}");
    }
    assert!(of(r#"{"capabilities":{"max_data_xfer_size":-1}}"#).is_err());
    assert!(of(&"[".repeat(100_000)).is_err(), "too long");
    assert!(of(&"[".repeat(10_000)).is_err(), "too deep");
    (0..4).for_each(|len| assert!(Version::decode(&[0; 4][..len]).is_err()));
    // What we send is what such a client reads.
    let answer = Version::decode(&Version::answer()).unwrap();
    assert_eq!((answer.major, answer.minor, answer.capabilities.max_data_bytes), (0, 0, MAX_DATA_BYTES));
}

proptest! {
    /// No decoder panics, whatever the bytes.
    #[test]
    fn nothing_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Version::decode(&body);
        let _ = DmaMap::decode(&body);
        let _ = DmaUnmap::decode(&body);
        let _ = DeviceInfo::check_request(&body);
        let _ = RegionInfoRequest::decode(&body);
        let _ = IrqInfo::decode_request(&body);
        let _ = SetIrqs::decode(&body);
        let _ = RegionAccess::decode_read(&body);
        let _ = RegionAccess::decode_write(&body);
        let _ = decode_write_multi(&body);
        if let Some(first) = body.first_chunk() {
            let _ = Header::decode(first);
        }
    }

    /// One byte that is wrong: taken or refused, and what is taken keeps to the limits.
    #[test]
    fn damaged_bodies_keep_to_the_limits(which in 0usize..6, at in 0usize..64, value in any::<u8>()) {
        let (_, mut body, takes) = exact().swap_remove(which);
        let len = body.len();
        if let Some(byte) = body.get_mut(at % len) {
            *byte = value;
        }
        let _ = takes(&body);
        if let Ok(map) = DmaMap::decode(&body) {
            prop_assert!(map.size > 0 && map.address.checked_add(map.size).is_some());
        }
        if let Ok(set) = SetIrqs::decode(&body) {
            prop_assert!(set.start.checked_add(set.count).is_some());
        }
        if let Ok(writes) = decode_write_multi(&body) {
            prop_assert!(writes.iter().all(|w| (1..=8).contains(&w.data().len())));
        }
    }
}
