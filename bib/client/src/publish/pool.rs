//! Large buffers that are used again: the first write to fresh memory costs more than the reading itself.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;

/// The size of a buffer, in bytes: several chunks, so that little is carried over from one to the next.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// Buffers that exist at most. A reader waits when all are on their way to the node.
const MAX_BUFFERS: usize = 5;

#[derive(Debug, Default)]
struct State {
    free: Vec<Vec<u8>>,
    made: usize,
}

/// A pool of buffers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool(Arc<(Mutex<State>, Condvar)>);

/// A buffer that goes back to its pool when the last slice of it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    pool: Pool,
}

impl Pool {
    /// A buffer of [`BUFFER_BYTES`] with old content; waits until there is one.
    pub(crate) fn take(&self) -> Buffer {
        let (state, returned) = &*self.0;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(bytes) = state.free.pop() {
                return Buffer { bytes, pool: self.clone() };
            }
            if state.made < MAX_BUFFERS {
                state.made += 1;
                return Buffer { bytes: vec![0; BUFFER_BYTES], pool: self.clone() };
            }
            state = returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Buffer {
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The buffer as shared bytes, without a copy.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let (state, returned) = &*self.pool.0;
        state.lock().unwrap_or_else(PoisonError::into_inner).free.push(std::mem::take(&mut self.bytes));
        returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_slice_is_gone() {
        let pool = Pool::default();
        let buffers: Vec<_> = (0..MAX_BUFFERS).map(|_| pool.take().freeze()).collect();
        let slice = buffers[0].slice(5..10);
        drop(buffers);
        let rest: Vec<_> = (1..MAX_BUFFERS).map(|_| pool.take()).collect();
        let waiting = std::thread::spawn({
            let pool = pool.clone();
            move || pool.take().as_ref().len()
        });
        drop(slice);
        assert_eq!(waiting.join().unwrap(), BUFFER_BYTES);
        drop(rest);
    }
}
