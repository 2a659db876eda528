#!/bin/sh
# Writes what packages contain beside the program: packaging/prepare.sh PROGRAM
# Manual pages and completions are printed by the program itself, into target/packaging.
set -eu
program="$1"
cd "$(dirname "$0")/.."
rm -rf target/packaging
mkdir -p target/packaging/man target/packaging/completions
"$program" man target/packaging/man
"$program" completions bash > target/packaging/completions/pgoutbox
"$program" completions zsh > target/packaging/completions/_pgoutbox
"$program" completions fish > target/packaging/completions/pgoutbox.fish
