#!/usr/bin/env bash
# Installs the object stores that the tests run against, at pinned versions,
# into the cache folder (see lib.sh): versitygw and MinIO (S3), fake-gcs-server
# (GCS), Azurite (Azure Blob) and OpenSSH (SFTP). It does nothing where they
# are present.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stores=$(cache_dir)/stores

command -v go >/dev/null || die "Go is needed: install the version named in go.mod"
mkdir -p "$stores/bin"
exec 9>"$stores/.lock"
flock 9

# server builds one server: server PACKAGE VERSION.
server() {
	local package=$1 version=$2 name=${1##*/}
	if go version -m "$stores/bin/$name" 2>/dev/null | grep -qE "^[[:space:]]mod[[:space:]].*[[:space:]]$version([[:space:]]|\$)"; then
		return
	fi
	say "$name $version (some minutes)"
	# Its long list of downloads is of interest only if it fails.
	if ! retry env GOBIN="$stores/bin" GOFLAGS= CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$package@$version" >"$stores/.log" 2>&1; then
		cat "$stores/.log" >&2
		die "go could not install $name"
	fi
}

packages=()
[ -x /usr/sbin/sshd ] && [ -x /usr/bin/ssh-keygen ] || packages+=(openssh-server openssh-client)
command -v npm >/dev/null || packages+=(nodejs npm)
if [ ${#packages[@]} -gt 0 ]; then
	say "${packages[*]}"
	retry as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >/dev/null
	# No service is to be started by the package: the tests start their own.
	retry as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -y --no-install-recommends install "${packages[@]}" >/dev/null
fi
# sshd drops its rights into this folder.
[ -d /run/sshd ] || as_root mkdir -p -m 0755 /run/sshd

# Azurite's dependencies are pinned by a lock file: what a range resolves to
# changes from day to day.
here=$(dirname "${BASH_SOURCE[0]}")
if ! cmp -s "$here/azurite/package-lock.json" "$stores/azurite/.installed"; then
	say "azurite"
	rm -rf "$stores/azurite"
	mkdir -p "$stores/azurite"
	cp "$here/azurite/package.json" "$here/azurite/package-lock.json" "$stores/azurite/"
	if ! retry npm ci --no-audit --no-fund --ignore-scripts --prefix "$stores/azurite" >"$stores/.log" 2>&1; then
		cat "$stores/.log" >&2
		die "npm could not install azurite"
	fi
	cp "$here/azurite/package-lock.json" "$stores/azurite/.installed"
fi

server github.com/versity/versitygw/cmd/versitygw v1.8.0
server github.com/fsouza/fake-gcs-server v1.56.1
server github.com/minio/minio v0.0.0-20260212201848-7aac2a2c5b7c
