//! Locks whose poisoning is not an error for us: every critical section here is a few moves of data.

pub use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// A mutex without poisoning.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);
/// A read-write lock without poisoning.
#[derive(Debug, Default)]
pub struct RwLock<T>(std::sync::RwLock<T>);

impl<T> Mutex<T> {
    /// A new mutex.
    pub fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }
    /// Locks.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T> RwLock<T> {
    /// A new lock.
    pub fn new(value: T) -> Self {
        Self(std::sync::RwLock::new(value))
    }
    /// Locks for reading.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    /// Locks for writing.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
