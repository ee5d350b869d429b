//! The `bibd` binary: nothing but the command line of the library.

fn main() -> std::process::ExitCode {
    bibd::cli::main()
}
