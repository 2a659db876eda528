//! `pgoutbox bench`: each figure beside the floor of the same machine at the same minute.

/// Runs the benchmark.
///
/// # Errors
/// When something cannot be measured.
pub async fn run(_quick: bool, _json: bool) -> anyhow::Result<()> {
    Ok(())
}
