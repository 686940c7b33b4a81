//! Tells the story line by line: when, in which step, what, and how long it took.

use std::time::{Duration, Instant};

use heya::error::Error;

/// Prints to the screen.
pub struct Narrator {
    began: Instant,
    last: Instant,
    step: u8,
}

impl Narrator {
    /// The story begins.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { began: now, last: now, step: 0 }
    }

    /// What follows belongs to this step.
    pub fn step(&mut self, step: u8) {
        self.step = step;
    }

    /// Something happened; it took the time since the line before.
    pub fn tell(&mut self, what: &str) {
        let took = self.last.elapsed();
        self.tell_in(what, took);
    }

    /// Something happened that took a time of its own.
    pub fn tell_in(&mut self, what: &str, took: Duration) {
        println!("{} {}: {what} ({})", self.stamp(), self.place(), length(took));
        self.last = Instant::now();
    }

    /// The story has ended.
    pub fn end(&self, what: &str) {
        println!("{} {what}, in {}", self.stamp(), length(self.began.elapsed()));
    }

    /// The story broke off.
    pub fn fail(&self, why: &str) {
        eprintln!("{} {} FAILED: {why}", self.stamp(), self.place());
    }

    fn stamp(&self) -> String {
        format!("[{:5.1} s]", self.began.elapsed().as_secs_f64())
    }

    fn place(&self) -> String {
        if self.step == 0 { "start".to_owned() } else { format!("step {}", self.step) }
    }
}

fn length(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// An error as a sentence.
pub fn sentence(error: &Error) -> String {
    match error {
        Error::Refused(refusal) => refusal.message.clone(),
        Error::Internal(source) => {
            let mut text = source.to_string();
            let mut cause = source.source();
            while let Some(inner) = cause {
                text.push_str(&format!(": {inner}"));
                cause = inner.source();
            }
            text
        }
    }
}
