//! The program `pgoutbox`: arguments in, exit code out. The rest is in `cli/`.

fn main() -> std::process::ExitCode {
    pgoutbox::run_command_line(std::env::args_os())
}
