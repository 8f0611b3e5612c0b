// SPDX-License-Identifier: MIT OR Apache-2.0
//! The traits of other crates.

use super::Disk;
#[cfg(feature = "embedded-sdmmc")]
use crate::Error;
use crate::Platform;

impl<P: Platform> Disk<'_, P> {
    /// How long the calls of traits that know no deadline may take, in nanoseconds; 30 seconds unless set.
    pub fn set_timeout(&self, nanoseconds: u64) {
        self.timeout.set(nanoseconds);
    }

    fn deadline(&self) -> u64 {
        self.platform().now().saturating_add(self.timeout.get())
    }
}

#[cfg(feature = "embedded-sdmmc")]
impl<P: Platform> embedded_sdmmc_types::blockdevice::BlockDevice for Disk<'_, P> {
    type Error = Error;

    fn read(
        &self,
        blocks: &mut [embedded_sdmmc_types::blockdevice::Block],
        start: embedded_sdmmc_types::blockdevice::BlockIdx,
    ) -> Result<(), Error> {
        let mut bytes = alloc::vec![0; blocks.len() * 512];
        self.by(self.deadline()).read(start.0.into(), &mut bytes)?;
        for (block, from) in blocks.iter_mut().zip(bytes.chunks_exact(512)) {
            block.contents.copy_from_slice(from);
        }
        Ok(())
    }

    fn write(
        &self,
        blocks: &[embedded_sdmmc_types::blockdevice::Block],
        start: embedded_sdmmc_types::blockdevice::BlockIdx,
    ) -> Result<(), Error> {
        let bytes: alloc::vec::Vec<u8> = blocks.iter().flat_map(|b| b.contents).collect();
        self.by(self.deadline()).write(start.0.into(), &bytes)
    }

    fn num_blocks(&self) -> Result<embedded_sdmmc_types::blockdevice::BlockCount, Error> {
        let n = u32::try_from(self.info().sectors).unwrap_or(u32::MAX);
        Ok(embedded_sdmmc_types::blockdevice::BlockCount(n))
    }
}

#[cfg(feature = "embedded-io")]
pub use stream::Stream;

#[cfg(feature = "embedded-io")]
mod stream {
    use super::Disk;
    use crate::{Error, Platform};
    use embedded_io::{ErrorType, Read, Seek, SeekFrom, Write};

    /// A disk as a stream of bytes, with a position. Bytes that are not whole sectors are read, changed and written
    /// back. Nothing is kept between calls, so it is only as fast as its calls are large. Reading at the
    /// end gives 0 bytes; writing there, [`Error::Invalid`].
    pub struct Stream<'d, 'x, P: Platform> {
        disk: &'d Disk<'x, P>,
        at: u64,
    }

    impl<P: Platform> core::fmt::Debug for Stream<'_, '_, P> {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            f.debug_struct("Stream")
                .field("at", &self.at)
                .finish_non_exhaustive()
        }
    }

    impl<'d, 'x, P: Platform> Stream<'d, 'x, P> {
        /// At the disk's first byte.
        #[must_use]
        pub fn new(disk: &'d Disk<'x, P>) -> Self {
            Self { disk, at: 0 }
        }

        fn unit(&self) -> u64 {
            self.disk.info().sector_size.into()
        }

        fn size(&self) -> u64 {
            self.disk.info().sectors.saturating_mul(512)
        }

        /// Sectors around the position, and where in them it is: whole ones of the caller's if possible, else one unit.
        fn place(&self, len: usize) -> (u64, usize, Option<usize>) {
            let unit = self.unit();
            let inside = (self.at % unit) as usize;
            let whole = len as u64 / unit * unit;
            let whole = (inside == 0 && whole > 0).then_some(whole as usize);
            ((self.at - inside as u64) / 512, inside, whole)
        }
    }

    impl<P: Platform> ErrorType for Stream<'_, '_, P> {
        type Error = Error;
    }

    impl<P: Platform> Read for Stream<'_, '_, P> {
        fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
            let left = usize::try_from(self.size().saturating_sub(self.at)).unwrap_or(usize::MAX);
            let n = buf.len().min(left);
            let buf = buf.get_mut(..n).unwrap_or_default();
            if buf.is_empty() {
                return Ok(0);
            }
            let disk = self.disk.by(self.disk.deadline());
            let (sector, inside, whole) = self.place(n);
            let n = match whole {
                Some(n) => {
                    disk.read(sector, buf.get_mut(..n).unwrap_or_default())?;
                    n
                }
                None => {
                    let mut bounce = alloc::vec![0; self.unit() as usize];
                    disk.read(sector, &mut bounce)?;
                    let from = bounce.get(inside..).unwrap_or_default();
                    buf.iter_mut()
                        .zip(from)
                        .map(|(to, from)| *to = *from)
                        .count()
                }
            };
            self.at += n as u64;
            Ok(n)
        }
    }

    impl<P: Platform> Write for Stream<'_, '_, P> {
        fn write(&mut self, buf: &[u8]) -> Result<usize, Error> {
            if buf.is_empty() {
                return Ok(0);
            }
            let left = usize::try_from(self.size().saturating_sub(self.at)).unwrap_or(usize::MAX);
            let buf = buf.get(..buf.len().min(left)).unwrap_or_default();
            if buf.is_empty() {
                return Err(Error::Invalid);
            }
            let disk = self.disk.by(self.disk.deadline());
            let (sector, inside, whole) = self.place(buf.len());
            let n = match whole {
                Some(n) => {
                    disk.write(sector, buf.get(..n).unwrap_or_default())?;
                    n
                }
                None => {
                    let mut bounce = alloc::vec![0; self.unit() as usize];
                    disk.read(sector, &mut bounce)?;
                    let to = bounce.get_mut(inside..).unwrap_or_default();
                    let n = to.iter_mut().zip(buf).map(|(to, from)| *to = *from).count();
                    disk.write(sector, &bounce)?;
                    n
                }
            };
            self.at += n as u64;
            Ok(n)
        }

        /// Makes durable what was written; nothing where the disk does not offer it.
        fn flush(&mut self) -> Result<(), Error> {
            match self.disk.by(self.disk.deadline()).flush() {
                Err(Error::Unsupported) => Ok(()),
                result => result,
            }
        }
    }

    impl<P: Platform> Seek for Stream<'_, '_, P> {
        fn seek(&mut self, pos: SeekFrom) -> Result<u64, Error> {
            let to = match pos {
                SeekFrom::Start(n) => Some(n),
                SeekFrom::End(n) => self.size().checked_add_signed(n),
                SeekFrom::Current(n) => self.at.checked_add_signed(n),
            };
            self.at = to.ok_or(Error::Invalid)?;
            Ok(self.at)
        }
    }
}
