#!/usr/bin/env bash
# The whole story in a minute, on a throw-away server: archive, back up, keep
# writing, lose a table, recover to the moment before, and prove that nothing
# that was committed is missing. Every agent command is shown as it is run.
set -euo pipefail

# PostgreSQL refuses to run as root: go on as the user postgres.
if [ "$(id -u)" -eq 0 ]; then
	work=$(mktemp -d /tmp/agent-demo.XXXXXX)
	trap 'rm -rf "$work"' EXIT
	install -m 755 "$(dirname "$0")/../../bin/agent" "$work/agent"
	install -m 755 "$0" "$work/demo.sh"
	chown -R postgres "$work"
	cd "$work"
	setpriv --reuid=postgres --regid=postgres --init-groups \
		env -i HOME="$work" PATH="$PATH" TERM="${TERM:-dumb}" SCALE="${SCALE:-20}" DEMO_WORK="$work" bash "$work/demo.sh"
	exit
fi

work=${DEMO_WORK:-$(mktemp -d /tmp/agent-demo.XXXXXX)}
if [ -z "${DEMO_WORK:-}" ]; then
	install -m 755 "$(dirname "$0")/../../bin/agent" "$work/agent"
fi
cd "$work"
pg=/usr/lib/postgresql/15/bin
scale=${SCALE:-20}
began=$(date +%s%N)
load=

finish() {
	[ -z "$load" ] || kill "$load" 2>/dev/null || true
	for d in primary restored; do
		if [ -f "$work/$d/postmaster.pid" ]; then
			"$pg/pg_ctl" -D "$work/$d" -m immediate stop >/dev/null 2>&1 || true
		fi
	done
	[ -n "${DEMO_WORK:-}" ] || rm -rf "$work"
}
trap finish EXIT

# milliseconds since the time that is given, and the same as seconds
since() { echo $((($(date +%s%N) - $1) / 1000000)); }
seconds() { printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)); }
say() { printf '\n[%7s s] %s\n' "$(seconds "$(since "$began")")" "$*"; }
show() { printf '    $ %s\n' "$*"; "$@" 2>&1 | sed 's/^/    /'; }
fail() { printf '\nFAILED: %s\n' "$*" >&2; exit 1; }
sql() { "$pg/psql" -XqAt -v ON_ERROR_STOP=1 "$@"; }

# All that the agent must know, and where psql finds the server.
export PATH="$work:$PATH"
export AGENT_REPOSITORY="$work/repository" AGENT_STATE_DIR="$work/state" AGENT_IDENTITY_FILE= AGENT_LOG_LEVEL=warn
export PGHOST=$work PGPORT=5432 PGUSER=postgres PGDATABASE=postgres

say "A key, so that nobody but its holder can read the backups, and a repository."
show agent keygen -o "$work/identity.txt"
AGENT_RECIPIENTS=$(sed -n 's/^# public key: //p' "$work/identity.txt")
export AGENT_RECIPIENTS
show agent repo init

say "A PostgreSQL server that archives its WAL with archive_command = 'agent wal-push %p'."
"$pg/initdb" -D primary -U postgres -A trust --data-checksums >/dev/null
cat >>primary/postgresql.conf <<CONF
listen_addresses = ''
unix_socket_directories = '$work'
archive_mode = on
archive_command = '$work/agent wal-push %p'
track_commit_timestamp = on
CONF
"$pg/pg_ctl" -D primary -l primary.log -w start >/dev/null

say "Data: pgbench at scale $scale, and a table of customers."
"$pg/pgbench" -i -q -s "$scale" >/dev/null 2>&1
sql -c "CREATE TABLE customers AS SELECT i AS id, md5(i::text) AS name FROM generate_series(1, 200000) i" \
	-c "CREATE TABLE journal (id bigserial PRIMARY KEY, noted timestamptz DEFAULT clock_timestamp())"
customers=$(sql -c "SELECT count(*), md5(string_agg(name, '' ORDER BY id)) FROM customers")

say "Four clients write without a pause from now on."
echo "INSERT INTO journal DEFAULT VALUES;" >journal.sql
"$pg/pgbench" -n -c 4 -j 2 -T 600 -b tpcb-like@9 -f journal.sql@1 >pgbench.log 2>&1 &
load=$!

say "A full backup, while they write."
show agent backup-push
show agent backup-list

say "More work, and then the moment that we will want back."
before=$(sql -c "SELECT count(*) FROM journal")
until [ "$(sql -c "SELECT count(*) FROM journal")" -gt $((before + 500)) ]; do sleep 0.1; done
# While the lock is held no row of the journal is half committed.
moment=$(sql -c "BEGIN" -c "LOCK TABLE journal IN SHARE ROW EXCLUSIVE MODE" -c "SELECT clock_timestamp()" -c "COMMIT")
printf '    the moment is %s\n' "$moment"

say "Somebody drops the table of customers. The clients write on."
after=$(sql -c "SELECT count(*) FROM journal")
sql -c "DROP TABLE customers"
until [ "$(sql -c "SELECT count(*) FROM journal")" -gt $((after + 200)) ]; do sleep 0.1; done
kill "$load"
wait "$load" || true
load=
sql -c "SELECT pg_switch_wal()" >/dev/null
journal=$(sql -c "SELECT count(*), coalesce(sum(id), 0) FROM journal WHERE pg_xact_commit_timestamp(xmin) <= '$moment'")
later=$(sql -c "SELECT count(*) FROM journal WHERE pg_xact_commit_timestamp(xmin) > '$moment'")
printf '    journal: %s rows were committed before the moment, %s after it\n' "${journal%%|*}" "$later"
"$pg/pg_ctl" -D primary -m fast -w stop >/dev/null

say "The restore, with the identity, to the moment before."
export AGENT_IDENTITY_FILE="$work/identity.txt"
restore_began=$(date +%s%N)
show agent backup-fetch "$work/restored" --target-time "$moment" --target-action promote
show "$pg/pg_verifybackup" -n "$work/restored"

say "The server recovers by itself."
"$pg/pg_ctl" -D restored -l restored.log -w start >/dev/null || { tail -20 restored.log; fail "the restored server did not start"; }
until [ "$(sql -c "SELECT pg_is_in_recovery()")" = f ]; do sleep 0.1; done
took=$(since "$restore_began")
grep -E "recovery stopping|last completed transaction|archive recovery complete" restored.log | sed 's/^/    /'

say "The proof."
check() {
	[ "$2" = "$3" ] || fail "$1: expected $2, found $3"
	printf '    ok: %s (%s)\n' "$1" "$3"
}
check "the customers are back, each of them" "$customers" "$(sql -c "SELECT count(*), md5(string_agg(name, '' ORDER BY id)) FROM customers")"
check "every row that was committed before the moment, and no other" "$journal" "$(sql -c "SELECT count(*), coalesce(sum(id), 0) FROM journal")"
check "the books of pgbench balance" "t" "$(sql -c "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers)
	AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)
	AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)")"
check "the clone does not archive into the repository of its origin" "off" "$(sql -c "SHOW archive_mode")"

say "Done: from the restore command to a server open for writing it took $(seconds "$took") s."
