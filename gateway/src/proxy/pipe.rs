//! Pipes, through which bytes go from one socket to another within the kernel.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// What a pipe holds as the kernel makes it (pipe(7)).
const USUAL: usize = 64 * 1024;
/// What a large pipe holds: a fast connection gains half as much again by it, and a slow
/// one may leave so much waiting.
const LARGE: usize = 256 * 1024;
/// Most large pipes. While all are in use, others are of the usual size.
const LARGE_MOST: usize = 32;

/// A pipe.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// How many bytes wait in it.
    held: usize,
    size: usize,
    /// A large one's.
    place: Option<Place>,
}

impl Pipe {
    fn new(place: Option<Place>) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A user's pipes together may be too large for it.
        let enlarge = |_| fcntl(&write, FcntlArg::F_SETPIPE_SZ(LARGE as i32)).is_ok();
        let size = if place.as_ref().is_some_and(enlarge) { LARGE } else { USUAL };
        Ok(Self { read, write, held: 0, size, place })
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
        let count = splice(from, None, &self.write, None, self.size, flags)?;
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

/// The place of a large pipe among those that there may be, free again when it is closed.
#[derive(Debug)]
struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The pipes. A connection has one only while bytes wait in it.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Large ones that are empty.
    kept: RefCell<Vec<Pipe>>,
    /// How many large ones there are.
    large: Rc<Cell<usize>>,
}

impl Pipes {
    /// An empty pipe.
    ///
    /// # Errors
    /// If the kernel makes none.
    pub fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.kept.borrow_mut().pop() {
            return Ok(pipe);
        }
        let place = (self.large.get() < LARGE_MOST).then(|| {
            self.large.set(self.large.get() + 1);
            Place(Rc::clone(&self.large))
        });
        Pipe::new(place)
    }

    /// Gives an empty pipe back.
    pub fn give_back(&self, pipe: Pipe) {
        if pipe.is_empty() && pipe.place.is_some() {
            self.kept.borrow_mut().push(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pipes_are_few_and_used_again() {
        let pipes = Pipes::default();
        let all: Vec<Pipe> = (0..LARGE_MOST + 3).map(|_| pipes.take().unwrap()).collect();
        let is_large = |pipe: &&Pipe| pipe.place.is_some();
        assert_eq!(all.iter().filter(is_large).count(), LARGE_MOST);
        for pipe in all {
            pipes.give_back(pipe);
        }
        assert_eq!((pipes.kept.borrow().len(), pipes.large.get()), (LARGE_MOST, LARGE_MOST));
        let mut held = pipes.take().unwrap();
        nix::unistd::write(&held.write, b"waiting").unwrap();
        held.held = 7;
        pipes.give_back(held);
        assert_eq!(pipes.large.get(), LARGE_MOST - 1, "it is closed, and makes room for another");
    }
}
