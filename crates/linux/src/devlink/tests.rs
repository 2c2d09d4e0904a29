use super::*;
use crate::devlink::message::{Part, Refusal, Request, decode};
use rustix::io::Errno;

const FAMILY: u16 = 0x15;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn device() -> Handle {
    Handle::new("pci", "0000:01:00.0").unwrap()
}

/// The attributes of port pci/0000:01:00.0/2, as in every request for it.
const PORT: &str = "0800 0100 70636900  1100 0200 303030303a30313a30302e3000 000000  0800 0300 02000000";

fn function_requests(change: &FunctionChange) -> Vec<String> {
    let requests = change.requests().unwrap();
    requests.iter().map(|(_, bytes)| bytes.iter().map(|b| format!("{b:02x}")).collect()).collect()
}

#[test]
fn a_request_is_these_bytes() {
    let mut attributes = port_request(&device(), 2);
    assert_eq!(attributes, hex(PORT));
    let change = FunctionChange { state: Some(PortState::Active), ..Default::default() };
    let (_, nest) = &change.requests().unwrap()[0];
    attribute::put(&mut attributes, uapi::ATTR_PORT_FUNCTION | attribute::NESTED, nest);
    let request = Request {
        family: FAMILY,
        command: uapi::CMD_PORT_SET,
        version: 1,
        flags: 5,
        sequence: 7,
        attributes: &attributes,
    };
    // Length 0x44 = 16 + 4 + 36 + 12, type, NLM_F_REQUEST | NLM_F_ACK, sequence, port 0; command, version, reserved;
    // then the port; then attribute 145 with NLA_F_NESTED, in it attribute 2, one byte, padded.
    let expected = format!("44000000 1500 0500 07000000 00000000  06 01 0000  {PORT}  0c00 9180  0500 0200 01 000000");
    assert_eq!(request.encode(), hex(&expected));
}

#[test]
fn each_attribute_of_a_function_is_a_request_and_the_state_comes_last() {
    let change = FunctionChange {
        hw_addr: Some(vec![0, 0x11, 0x22, 0x33, 0x44, 0x55]),
        migratable: Some(true),
        roce: Some(false),
        state: Some(PortState::Inactive),
    };
    assert_eq!(
        function_requests(&change),
        [
            "0a0001000011223344550000",
            // A bitfield of 32 bits: values, then which of them are meant.
            "0c0004000000000001000000",
            "0c0004000200000002000000",
            "0500020000000000",
        ]
    );
    assert_eq!(function_requests(&FunctionChange::default()), Vec::<String>::new());
    let short = FunctionChange { hw_addr: Some(vec![1, 2]), ..Default::default() };
    assert_eq!(short.requests().unwrap_err().kind, HostErrorKind::Argument);
}

/// A message with a netlink and a generic netlink header.
fn message(flags: u16, sequence: u32, command: u8, attributes: &[u8]) -> Vec<u8> {
    Request { family: FAMILY, command, version: 1, flags, sequence, attributes }.encode()
}

/// What mlx5 tells of a VF's port: `devlink port show` of the kernel's documentation, as bytes.
fn vf_port() -> Vec<u8> {
    let mut out = port_request(&device(), 2);
    put_u16(&mut out, uapi::ATTR_PORT_FLAVOUR, 4);
    put_text(&mut out, uapi::ATTR_PORT_NETDEV_NAME, "eth3");
    put_u32(&mut out, uapi::ATTR_PORT_CONTROLLER_NUMBER, 0);
    put_u16(&mut out, uapi::ATTR_PORT_PCI_PF_NUMBER, 0);
    put_u16(&mut out, uapi::ATTR_PORT_PCI_VF_NUMBER, 1);
    let mut function = Vec::new();
    put(&mut function, uapi::FN_ATTR_HW_ADDR, &[0, 1, 2, 3, 4, 5]);
    put(&mut function, uapi::FN_ATTR_STATE, &[1]);
    put(&mut function, uapi::FN_ATTR_OPSTATE, &[0]);
    // RoCE on, migratable off, IPsec not told.
    put(&mut function, uapi::FN_ATTR_CAPS, &hex("01000000 03000000"));
    put(&mut out, uapi::ATTR_PORT_FUNCTION | attribute::NESTED, &function);
    out
}

#[test]
fn a_port_is_read() {
    let bytes = message(0, 7, uapi::CMD_PORT_NEW, &vf_port());
    let (part, length) = decode("x", FAMILY, 7, &bytes).unwrap();
    assert_eq!(length, bytes.len());
    let Part::Reply(reply, false) = part else { panic!("{part:?}") };
    let port = Port::read("x", &reply.attributes("x").unwrap()).unwrap();
    let function = PortFunction {
        hw_addr: Some(vec![0, 1, 2, 3, 4, 5]),
        state: Some(PortState::Active),
        opstate: Some(OperationalState::Detached),
        migratable: Some(false),
        roce: Some(true),
    };
    let expected = Port {
        device: device(),
        index: 2,
        flavour: Flavour::PciVf,
        netdev: Some("eth3".into()),
        controller: Some(0),
        pf: Some(0),
        vf: Some(1),
        sf: None,
        function: Some(function),
    };
    assert_eq!(port, expected);
}

#[test]
fn damaged_answers_are_errors_and_never_more() {
    let bytes = message(0, 7, uapi::CMD_PORT_NEW, &vf_port());
    let read = |bytes: &[u8]| -> Result<Option<Port>, HostError> {
        match decode("x", FAMILY, 7, bytes)?.0 {
            Part::Reply(reply, _) => Port::read("x", &reply.attributes("x")?).map(Some),
            _ => Ok(None),
        }
    };
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "cut at {length}");
    }
    // A flipped bit may make another good message; it may not make a panic.
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = read(&flipped);
    }
    let mut odd = port_request(&device(), 2);
    put_text(&mut odd, uapi::ATTR_PORT_NETDEV_NAME, "eth\u{1b}[2J");
    assert!(read(&message(0, 7, 3, &odd)).is_err());
    let mut wide = device_request(&device());
    put(&mut wide, uapi::ATTR_PORT_INDEX, &[0; 8]);
    assert!(read(&message(0, 7, 3, &wide)).is_err());
    let mut outside = Vec::new();
    put_text(&mut outside, uapi::ATTR_BUS_NAME, "../..");
    put_text(&mut outside, uapi::ATTR_DEV_NAME, "x");
    put_u32(&mut outside, uapi::ATTR_PORT_INDEX, 0);
    assert!(read(&message(0, 7, 3, &outside)).is_err());
    assert_eq!(read(&message(0, 8, 3, &vf_port())).unwrap(), None, "the answer to another request");
}

/// An `NLMSG_ERROR` as the kernel makes it, with the header of the request behind it.
fn error(code: i32, flags: u16, behind: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(20 + behind.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&2u16.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&7u32.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&code.to_ne_bytes());
    bytes.extend_from_slice(behind);
    bytes
}

#[test]
fn refusals_carry_the_kernels_words() {
    let request = message(5, 7, uapi::CMD_PORT_SET, &port_request(&device(), 2));
    let mut words = Vec::new();
    put_text(&mut words, 1, "Port doesn't support function attributes");
    let (capped, tlvs) = (0x100, 0x200);
    let full = [request.as_slice(), &words].concat();
    let header = [&request[..16], &words].concat();
    let told = Some("Port doesn't support function attributes".to_owned());
    for (flags, behind, text) in [
        (tlvs, &full, told.clone()),
        (tlvs | capped, &header, told),
        (0, &request, None),
        // Damage in the explanation does not hide the errno.
        (tlvs, &header[..20].to_vec(), None),
        (tlvs | capped, &header[..18].to_vec(), None),
        (tlvs, &Vec::new(), None),
    ] {
        let (part, _) = decode("x", FAMILY, 7, &error(-95, flags, behind)).unwrap();
        assert_eq!(part, Part::Refused(Refusal { errno: Errno::OPNOTSUPP, text }));
    }
    assert_eq!(decode("x", FAMILY, 7, &error(0, capped, &request[..16])).unwrap().0, Part::End(false));
    for nonsense in [1, i32::MIN, -5000] {
        let (part, _) = decode("x", FAMILY, 7, &error(nonsense, 0, &request)).unwrap();
        assert_eq!(part, Part::Refused(Refusal { errno: Errno::IO, text: None }), "{nonsense}");
    }
}

#[test]
fn a_dump_that_was_interrupted_says_so() {
    let bytes = message(0x10 | 2, 7, uapi::CMD_PORT_NEW, &vf_port());
    assert!(matches!(decode("x", FAMILY, 7, &bytes).unwrap().0, Part::Reply(_, true)));
    let mut done = error(0, 0x10, &[]);
    done[4] = 3;
    assert_eq!(decode("x", FAMILY, 7, &done).unwrap().0, Part::End(true));
    let mut failed = error(-1, 0, &[]);
    failed[4] = 3;
    let refused = Part::Refused(Refusal { errno: Errno::PERM, text: None });
    assert_eq!(decode("x", FAMILY, 7, &failed).unwrap().0, refused);
}

#[test]
fn names_of_devices_are_names() {
    for (bus, name) in [("", "x"), ("pci", ""), ("pci", "a/b"), ("..", "x"), ("pci", "a\0b"), ("pci", &"x".repeat(65))]
    {
        assert_eq!(Handle::new(bus, name).unwrap_err().kind, HostErrorKind::Argument, "{bus:?} {name:?}");
    }
}

#[test]
fn numbers_of_flavours_are_the_kernels() {
    let names = ["physical", "cpu", "dsa", "pci-pf", "pci-vf", "virtual", "unused", "pci-sf", "other"];
    for (number, name) in (0u16..).zip(names) {
        assert_eq!(Flavour::from_number(number).name(), name);
        assert_eq!(Flavour::from_number(number).number(), number);
    }
}

#[test]
fn without_rights_words_say_which_are_missing() {
    let means = meaning::meaning(uapi::CMD_PORT_SET, Errno::PERM).unwrap();
    let error = HostError::refused("setting x", Errno::PERM, Some(means));
    assert_eq!(error.kind, HostErrorKind::Permission);
    assert!(error.to_string().contains("EPERM") && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
}
