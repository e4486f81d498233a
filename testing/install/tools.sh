#!/usr/bin/env bash
# Installs the linter and the formatter at pinned versions into the cache folder
# (see lib.sh), and prints the folder that holds them. It does nothing where
# they are present.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bin=$(cache_dir)/bin

# tool installs one program: tool PACKAGE VERSION. The version that a program
# was built from is read from the program itself.
tool() {
	local package=$1 version=$2 name=${1##*/}
	if go version -m "$bin/$name" 2>/dev/null | grep -qE "^[[:space:]]mod[[:space:]].*[[:space:]]$version([[:space:]]|\$)"; then
		return
	fi
	say "$name $version"
	# Its long list of downloads is of interest only if it fails.
	if ! retry env GOBIN="$bin" GOFLAGS= CGO_ENABLED=0 go install "$package@$version" >"$bin/.log" 2>&1; then
		cat "$bin/.log" >&2
		die "go could not install $name"
	fi
}

command -v go >/dev/null || die "Go is needed: install the version named in go.mod"
mkdir -p "$bin"
exec 9>"$bin/.lock"
flock 9
tool github.com/golangci/golangci-lint/v2/cmd/golangci-lint v2.15.0
tool mvdan.cc/gofumpt v0.12.0
printf '%s\n' "$bin"
