//! A DNS server that knows one name, so that a guest can show that its queries get through.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

/// Bytes before the question.
const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: [u8; 2] = [0, 1];

/// The name and its addresses.
#[derive(Debug, Clone, Copy)]
pub struct Answers {
    /// The name, with dots.
    pub name: &'static str,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// Answers queries at `address` until the test ends. Call it in the network namespace that it is
/// for.
pub fn serve(address: &str, answers: Answers) {
    let socket = UdpSocket::bind((address, 53)).expect("an address of this machine");
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut question) {
            if let Some(reply) = reply(&question[..len], answers) {
                // A guest that has ended needs no answer.
                drop(socket.send_to(&reply, from));
            }
        }
    });
}

fn reply(question: &[u8], answers: Answers) -> Option<Vec<u8>> {
    let mut name = String::new();
    let mut at = HEADER;
    while let len @ 1.. = usize::from(*question.get(at)?) {
        let label = question.get(at + 1..at + 1 + len)?;
        name.push_str(&String::from_utf8_lossy(label).to_lowercase());
        name.push('.');
        at += 1 + len;
    }
    let end = at + 5;
    let kind = u16::from_be_bytes(question.get(at + 1..at + 3)?.try_into().ok()?);
    let known = name.trim_end_matches('.') == answers.name;
    let data = match kind {
        TYPE_A if known => Some(answers.v4.octets().to_vec()),
        TYPE_AAAA if known => Some(answers.v6.octets().to_vec()),
        _ => None,
    };
    let mut reply = question.get(..2)?.to_vec();
    // An authoritative answer; an unknown name does not exist.
    let flags: u16 = if known { 0x8580 } else { 0x8583 };
    reply.extend(flags.to_be_bytes());
    reply.extend([0, 1, 0, u8::from(data.is_some()), 0, 0, 0, 0]);
    reply.extend(question.get(HEADER..end)?);
    if let Some(data) = data {
        // The name again, as a pointer to that in the question.
        reply.extend([0xc0, 0x0c]);
        reply.extend(kind.to_be_bytes());
        reply.extend(CLASS_IN);
        reply.extend(60_u32.to_be_bytes());
        reply.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        reply.extend(data);
    }
    Some(reply)
}

#[cfg(test)]
mod tests;
