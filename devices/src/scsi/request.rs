//! The framing of a command: header, CDB and data-out; response, sense and data-in (VIRTIO 1.2 §5.6.6.1).
//!
//! Header and CDB are copied once. Descriptors may cut anywhere: readable and writable part are byte streams.

use splitring_virtio::device::chain::ShortChain;
use splitring_virtio::mem::Segment;
use splitring_virtio::spec::scsi::{RequestHeader, ResponseHeader, response};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::cdb::{Cdb, MAX_CDB};
use super::job::DataOut;
use super::sense::Status;
use crate::device::{DescriptorChain, Queue};

/// Bounds of the sizes a driver may set. Sense data is 18 bytes at least and 252 at most (SPC-4 §4.5), CDBs are 16
/// bytes at least here and 260 at most (SPC-4 §4.2.3).
pub(crate) const SENSE_SIZES: std::ops::RangeInclusive<u32> = 18..=252;
pub(crate) const CDB_SIZES: std::ops::RangeInclusive<u32> = 16..=260;

const HEADER: usize = size_of::<RequestHeader>();
const RESPONSE: usize = size_of::<ResponseHeader>();
/// Longest response area.
const MAX_RESPONSE: usize = RESPONSE + *SENSE_SIZES.end() as usize;

/// Sizes the driver may set (VIRTIO 1.2 §5.6.4), as they are while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) cdb: u32,
    pub(crate) sense: u32,
}

impl Sizes {
    fn header(&self) -> u64 {
        let fixed = u64::try_from(HEADER).unwrap_or(0);
        fixed.saturating_add(self.cdb.into())
    }

    /// The part of a request area that is looked at.
    fn kept<'a>(&self, area: &'a mut [u8; HEADER + MAX_CDB]) -> &'a mut [u8] {
        let cdb = usize::try_from(self.cdb).unwrap_or(MAX_CDB).min(MAX_CDB);
        area.get_mut(..HEADER.saturating_add(cdb))
            .unwrap_or_default()
    }

    fn response(&self) -> u64 {
        let fixed = u64::try_from(RESPONSE).unwrap_or(0);
        fixed.saturating_add(self.sense.into())
    }
}

/// A command with the chain it came in.
pub(crate) struct Request {
    chain: DescriptorChain,
    sizes: Sizes,
    pub(crate) lun: [u8; 8],
    /// The driver's name for the command.
    pub(crate) id: u64,
    pub(crate) cdb: Cdb,
}

/// How a command is answered.
pub(crate) enum Answer<'a> {
    /// By the device server, with parameter data.
    Status(Status, &'a [u8]),
    /// By the device server; this many bytes of data-in have been filled already.
    Filled(u64),
    /// By the transport.
    Response(u8),
}

impl Request {
    /// Takes the request area apart. On an error the chain comes back, to be completed empty.
    pub(crate) fn parse(
        chain: DescriptorChain,
        sizes: Sizes,
    ) -> Result<Self, (DescriptorChain, ShortChain)> {
        let areas = [
            (sizes.header(), chain.readable_len()),
            (sizes.response(), chain.writable_len()),
        ];
        if let Some((wanted, left)) = areas.into_iter().find(|(wanted, left)| left < wanted) {
            return Err((chain, ShortChain { wanted, left }));
        }
        let mut area = [0; HEADER + MAX_CDB];
        match chain.reader().read_exact(sizes.kept(&mut area)) {
            Err(short) => Err((chain, short)),
            Ok(()) => {
                let header = RequestHeader::read_from_prefix(&area);
                let (lun, id) =
                    header.map_or(([0; 8], 0), |(header, _)| (header.lun, header.id.get()));
                Ok(Self {
                    sizes,
                    lun,
                    id,
                    cdb: Cdb::new(area.get(HEADER..).unwrap_or_default()),
                    chain,
                })
            }
        }
    }

    /// Bytes of data-out the driver offers.
    pub(crate) fn data_out_len(&self) -> u64 {
        self.chain
            .readable_len()
            .saturating_sub(self.sizes.header())
    }

    /// Bytes of data-in the driver has room for.
    pub(crate) fn data_in_len(&self) -> u64 {
        self.chain
            .writable_len()
            .saturating_sub(self.sizes.response())
    }

    /// Part of the data-out as guest memory.
    pub(crate) fn data_out(&mut self, start: u64, len: u64) -> Result<&[Segment], ShortChain> {
        self.chain
            .readable_range(self.sizes.header().saturating_add(start), len)
    }

    /// The first `len` bytes of the data-in as guest memory.
    pub(crate) fn data_in(&mut self, len: u64) -> Result<&[Segment], ShortChain> {
        self.chain.writable_range(self.sizes.response(), len)
    }

    /// Answers and gives the chain back. `used` is how much of the data-out was taken.
    pub(crate) fn complete(
        mut self,
        queue: &mut Queue,
        answer: &Answer<'_>,
        used: u64,
        descriptor_sense: bool,
    ) {
        let (code, status, data, filled) = match answer {
            Answer::Status(status, data) => (response::OK, Some(status), *data, 0),
            Answer::Filled(filled) => (response::OK, None, &[][..], *filled),
            Answer::Response(code) => (*code, None, &[][..], 0),
        };
        let mut sense = status
            .and_then(Status::sense)
            .map(|sense| sense.encode(descriptor_sense))
            .unwrap_or_default();
        sense.truncate(usize::try_from(self.sizes.sense).unwrap_or(0));
        let data_len = u64::try_from(data.len())
            .unwrap_or(0)
            .min(self.data_in_len());
        let moved = data_len.saturating_add(filled).saturating_add(used);
        let offered = self.data_in_len().saturating_add(self.data_out_len());
        let left = if code == response::OK {
            offered.saturating_sub(moved)
        } else {
            0
        };
        let header = ResponseHeader {
            sense_len: U32::new(u32::try_from(sense.len()).unwrap_or(0)),
            residual: U32::new(u32::try_from(left).unwrap_or(u32::MAX)),
            status: status.map_or(0, Status::code),
            response: code,
            ..ResponseHeader::default()
        };
        let written = self.write(&header, &sense, data, filled).unwrap_or(0);
        queue.complete(self.chain, u32::try_from(written).unwrap_or(u32::MAX));
    }

    /// Writes the response area, and says how many bytes from its start on are written now.
    fn write(
        &mut self,
        header: &ResponseHeader,
        sense: &[u8],
        data: &[u8],
        filled: u64,
    ) -> Result<u64, ShortChain> {
        // What counts as written begins at the start without a gap: before data, the whole sense area is written.
        let mut area = [0; MAX_RESPONSE];
        let answers = data.is_empty() && filled == 0;
        let len = match answers {
            true => RESPONSE.saturating_add(sense.len()),
            false => usize::try_from(self.sizes.response()).unwrap_or(MAX_RESPONSE),
        };
        for (at, part) in [(0, header.as_bytes()), (RESPONSE, sense)] {
            if let Some(place) = area.get_mut(at..at.saturating_add(part.len())) {
                place.copy_from_slice(part);
            }
        }
        let mut writer = self.chain.writer();
        writer.write_all(area.get(..len).unwrap_or(&area))?;
        if !data.is_empty() {
            let room = usize::try_from(writer.remaining()).unwrap_or(usize::MAX);
            writer.write_all(data.get(..room.min(data.len())).unwrap_or_default())?;
        }
        Ok(writer.written().saturating_add(filled))
    }
}

impl DataOut for Request {
    fn copy(&self, start: u64, out: &mut [u8]) -> bool {
        let mut reader = self.chain.reader();
        reader
            .skip(self.sizes.header().saturating_add(start))
            .and_then(|()| reader.read_exact(out))
            .is_ok()
    }
}
