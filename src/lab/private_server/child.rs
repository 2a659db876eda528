//! A child process that ends with its owner. A separate thread starts it and waits for it.

use std::{
    fs, io,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        mpsc::{Receiver, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Deadline for a process to end after SIGKILL or to stop after SIGSTOP.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Whether `setpriv` is installed, which makes the kernel signal a child when its owner ends.
pub(crate) fn can_own() -> bool {
    let checked = Command::new("setpriv")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    checked.is_ok_and(|status| status.success())
}

/// A started child.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    ending: Mutex<Ending>,
    thread: Option<JoinHandle<()>>,
}

/// Exit status, once it is known. After that another process may have the same id.
#[derive(Debug)]
struct Ending {
    ended: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts the child.
    pub(crate) fn start(mut command: Command, name: &str) -> io::Result<Self> {
        let (report_started, started) = sync_channel(1);
        let (report_ended, ended) = sync_channel(1);
        // The kernel signals the child when this *thread* ends, so the thread waits for the child.
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(move || match command.spawn() {
                Ok(mut child) => {
                    let _ = report_started.send(Ok(child.id()));
                    // There is no status if the embedding program ignores SIGCHLD, but
                    // the child has ended.
                    let _ = report_ended.send(child.wait().unwrap_or_default());
                }
                Err(error) => {
                    let _ = report_started.send(Err(error));
                }
            })?;
        let pid = started.recv().expect("the thread reports whether it started the child")?;
        Ok(Self { pid, ending: Mutex::new(Ending { ended, status: None }), thread: Some(thread) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the child still runs.
    pub(crate) fn runs(&self) -> bool {
        self.ended_within(Duration::ZERO).is_none()
    }

    /// Waits for the end of the child. Returns its exit status, or none if it still runs.
    pub(crate) fn ended_within(&self, limit: Duration) -> Option<ExitStatus> {
        let mut ending = self.ending.lock().expect("no panic while the status is locked");
        if ending.status.is_none() {
            ending.status = ending.ended.recv_timeout(limit).ok();
        }
        ending.status
    }

    /// Sends a signal to the child only.
    pub(crate) fn signal(&self, signal: &str) {
        if self.runs() {
            signal_all(signal, &[self.pid]);
        }
    }

    /// Stops the child until it gets `CONT`, and waits until all its threads have stopped: after the
    /// signal, threads may run on for a while.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
        let began = Instant::now();
        while !every_thread_is_stopped(self.pid) && began.elapsed() < KILL_DEADLINE {
            if self.ended_within(Duration::from_millis(1)).is_some() {
                return;
            }
        }
    }

    /// Kills the child and its children.
    pub(crate) fn kill(&self) {
        // Stop it first, so that it starts no process while its children are listed.
        self.freeze();
        let mut all = children(self.pid);
        all.push(self.pid);
        signal_all("KILL", &all);
        self.ended_within(KILL_DEADLINE);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.runs() {
            self.kill();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends a signal with the shell's builtin `kill`, because the program may not be installed.
fn signal_all(signal: &str, processes: &[u32]) {
    let processes = processes.iter().map(u32::to_string);
    let _ = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$@\"", signal])
        .args(processes)
        .stderr(Stdio::null())
        .status();
}

fn children(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    numbers("/proc")
        .filter(|process| stat(&format!("/proc/{process}/stat"), 1).as_ref() == Some(&parent))
        .collect()
}

fn every_thread_is_stopped(process: u32) -> bool {
    let tasks = format!("/proc/{process}/task");
    // A thread that has ended has no state.
    numbers(&tasks).all(|thread| {
        stat(&format!("{tasks}/{thread}/stat"), 0).is_none_or(|state| matches!(&*state, "T" | "Z" | "X"))
    })
}

fn numbers(directory: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
}

/// A field of a `stat` file, counted after the name, which is in parentheses and may contain anything: 0 is
/// the state, 1 the parent.
fn stat(path: &str, field: usize) -> Option<String> {
    let stat = fs::read_to_string(path).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(field).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "run by the test below, as the process that is frozen"]
    fn spins() {
        let spin = || {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(60) {}
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(spin);
            }
        });
    }

    #[test]
    fn freezing_stops_every_thread_of_a_process() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let spins = concat!(module_path!(), "::spins").trim_start_matches("pgoutbox::");
        command.args(["--exact", spins, "--ignored"]).stdout(Stdio::null());
        let child = Child::start(command, "spinning").unwrap();
        let threads = || numbers(&format!("/proc/{}/task", child.pid)).count();
        let started = Instant::now();
        while threads() < 6 {
            assert!(started.elapsed() < KILL_DEADLINE, "it has its threads");
        }
        for _ in 0..20 {
            child.freeze();
            assert!(every_thread_is_stopped(child.pid));
            child.signal("CONT");
        }
    }
}
