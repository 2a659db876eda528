//! The program `pgoutbox`: arguments in, exit code out. The rest is in `cli/`.

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    pgoutbox::run_command_line(std::env::args_os())
}
