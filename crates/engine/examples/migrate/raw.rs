//! The peer: bytes through one TCP connection, from memory to memory, in writes and reads of 1 MiB.
//!
//! One transfer is a length (u64, little-endian), the bytes, and an 8-byte answer once all are there. A length of 0 asks for
//! the CRC32C of what came last, which is computed outside of the measurement.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use towline_core::crc::crc32c;

const PIECE: usize = 1 << 20;

/// Receives transfers of at most `most` bytes from whoever connects, for ever. Returns where.
pub fn serve(most: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // Written once, so that no transfer pays for page faults.
        let mut target = vec![0xA5; most];
        for socket in listener.incoming() {
            answer(socket.unwrap(), &mut target);
        }
    });
    at
}

fn answer(mut socket: TcpStream, target: &mut [u8]) {
    socket.set_nodelay(true).unwrap();
    let (mut length, mut last) = ([0; 8], 0);
    // Ends with the connection.
    while socket.read_exact(&mut length).is_ok() {
        let n = u64::from_le_bytes(length) as usize;
        let reply = if n == 0 {
            u64::from(crc32c(0, &target[..last]))
        } else {
            for piece in target[..n].chunks_mut(PIECE) {
                socket.read_exact(piece).unwrap();
            }
            last = n;
            n as u64
        };
        socket.write_all(&reply.to_le_bytes()).unwrap();
    }
}

pub struct Raw(TcpStream);

impl Raw {
    pub fn connect(to: SocketAddr) -> Self {
        let socket = TcpStream::connect(to).unwrap();
        socket.set_nodelay(true).unwrap();
        Self(socket)
    }

    /// Sends `data` and waits until the other side has it in memory. Returns the milliseconds; count and checksum are
    /// compared afterwards.
    pub fn send(&mut self, data: &[u8]) -> f64 {
        assert!(!data.is_empty(), "nothing to send");
        let start = Instant::now();
        self.0.write_all(&(data.len() as u64).to_le_bytes()).unwrap();
        for piece in data.chunks(PIECE) {
            self.0.write_all(piece).unwrap();
        }
        let count = self.reply();
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        assert_eq!(count, data.len() as u64, "raw TCP lost bytes");
        self.0.write_all(&0_u64.to_le_bytes()).unwrap();
        assert_eq!(self.reply(), u64::from(crc32c(0, data)), "raw TCP damaged bytes");
        ms
    }

    fn reply(&mut self) -> u64 {
        let mut reply = [0; 8];
        self.0.read_exact(&mut reply).unwrap();
        u64::from_le_bytes(reply)
    }
}
