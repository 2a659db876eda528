//! Manual pages, one for each command. Packages contain them.

use std::path::Path;

use anyhow::Context as _;

/// Writes `pgoutbox.1`, `pgoutbox-run.1` and so on into a folder.
pub(super) fn write(command: &clap::Command, folder: &Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(command.clone(), folder)
        .with_context(|| format!("writing manual pages into {}", folder.display()))
}
