//! A child process that ends with its owner: started by a thread that lives as long as it does, signalled, waited for.

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

/// How long a killed process may take to end, and a stopped one to stop; neither has a say in it.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Whether there is `setpriv`, with which the kernel signals a child when its owner ends.
pub(crate) fn can_own() -> bool {
    let asked = Command::new("setpriv")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// A started child.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    ending: Mutex<Ending>,
    thread: Option<JoinHandle<()>>,
}

/// How it ended, once that is known. From then on its process number may be somebody else's.
#[derive(Debug)]
struct Ending {
    told: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts it.
    pub(crate) fn start(mut command: Command, name: &str) -> io::Result<Self> {
        let (tell_started, started) = sync_channel(1);
        let (tell_ended, told) = sync_channel(1);
        // The signal comes when this *thread* ends, not when the process does: it waits here as long as the child runs.
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(move || match command.spawn() {
                Ok(mut child) => {
                    let _ = tell_started.send(Ok(child.id()));
                    // Without a status when the embedding program ignores SIGCHLD; it has ended all the same.
                    let _ = tell_ended.send(child.wait().unwrap_or_default());
                }
                Err(error) => {
                    let _ = tell_started.send(Err(error));
                }
            })?;
        let pid = started.recv().expect("the thread tells whether it started the child")?;
        Ok(Self { pid, ending: Mutex::new(Ending { told, status: None }), thread: Some(thread) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether its process is still there.
    pub(crate) fn runs(&self) -> bool {
        self.ended_within(Duration::ZERO).is_none()
    }

    /// How it ended, if it does so in time.
    pub(crate) fn ended_within(&self, patience: Duration) -> Option<ExitStatus> {
        let mut ending = self.ending.lock().expect("nobody panics while waiting for the child");
        if ending.status.is_none() {
            ending.status = ending.told.recv_timeout(patience).ok();
        }
        ending.status
    }

    /// Sends it a signal, and to nobody else.
    pub(crate) fn signal(&self, signal: &str) {
        if self.runs() {
            signal_all(signal, &[self.pid]);
        }
    }

    /// Stops it until it gets `CONT`. The signal alone promises little: a thread may go on for as long as the one that takes the signal
    /// waits for a processor.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
        let asked = Instant::now();
        while !every_thread_is_stopped(self.pid) && asked.elapsed() < KILL_DEADLINE {
            if self.ended_within(Duration::from_millis(1)).is_some() {
                return;
            }
        }
    }

    /// Kills it and its children.
    pub(crate) fn kill(&self) {
        // Stopped first, so that it starts nothing while its children are counted.
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

/// The shell's own `kill`, which is there also where no package brings the program.
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
    // A thread that has ended meanwhile has no state.
    numbers(&tasks).all(|thread| {
        stat(&format!("{tasks}/{thread}/stat"), 0).is_none_or(|state| matches!(&*state, "T" | "Z" | "X"))
    })
}

fn numbers(directory: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
}

/// A field of such a file, counted from behind the name, which stands in parentheses and may hold anything: state, parent.
fn stat(path: &str, field: usize) -> Option<String> {
    let stat = fs::read_to_string(path).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(field).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "the process with many busy threads that the test below freezes"]
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
    fn what_is_frozen_does_nothing_more_in_any_of_its_threads() {
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
