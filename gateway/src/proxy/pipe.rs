//! Pipes, through which bytes go from one socket to another within the kernel.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::unistd::pipe2;

/// The most bytes that are moved at once: what a pipe holds (pipe(7)).
const CHUNK: usize = 64 * 1024;
/// Most empty pipes that are kept for the next bytes.
const KEPT: usize = 64;

/// A pipe.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { read, write, held: 0 })
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes bytes from a socket that does not block, and returns their number.
    ///
    /// # Errors
    /// The socket's; it would block where nothing has arrived.
    pub fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let count = splice(from, None, &self.write, None, CHUNK, flags)?;
        self.held += count;
        Ok(count)
    }

    /// Gives bytes to a socket that does not block.
    ///
    /// # Errors
    /// The socket's; it would block where it takes nothing now.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<()> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let count = splice(&self.read, None, to, None, self.held, flags)?;
        self.held = self.held.saturating_sub(count);
        Ok(())
    }
}

/// Empty pipes. A connection has one only while bytes wait in it.
#[derive(Debug, Default)]
pub struct Pipes(RefCell<Vec<Pipe>>);

impl Pipes {
    /// An empty pipe.
    ///
    /// # Errors
    /// If there is none, and the kernel makes no other.
    pub fn take(&self) -> io::Result<Pipe> {
        let kept = self.0.borrow_mut().pop();
        kept.map_or_else(Pipe::new, Ok)
    }

    /// Gives a pipe back. One with bytes in it is closed.
    pub fn give_back(&self, pipe: Pipe) {
        let mut kept = self.0.borrow_mut();
        if pipe.is_empty() && kept.len() < KEPT {
            kept.push(pipe);
        }
    }
}
