//! The program: arguments in, exit code out. Everything between is in `cli/`.

fn main() -> std::process::ExitCode {
    pgoutbox::run_command_line(std::env::args_os())
}
