//go:build bench

package bench_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agent/testing/harness"
)

// pgbackrest is a stanza of pgBackRest, as Debian has it, for a server: with as
// many processes as the agent uses, lz4, and asynchronous archiving.
type pgbackrest struct {
	b    *bench
	dir  string
	conf string
}

func newPgBackRest(t *testing.T, b *bench, s *harness.Server) *pgbackrest {
	t.Helper()
	p := &pgbackrest{b: b, dir: filepath.Join(b.dir, "pgbackrest")}
	p.conf = filepath.Join(p.dir, "pgbackrest.conf")
	b.sh("mkdir -p " + p.dir + "/repo " + p.dir + "/log " + p.dir + "/lock " + p.dir + "/spool")
	lines := []string{
		"[global]", "repo1-path=" + p.dir + "/repo", "log-path=" + p.dir + "/log", "lock-path=" + p.dir + "/lock", "spool-path=" + p.dir + "/spool",
		"process-max=2", "compress-type=lz4", "start-fast=y", "log-level-file=off", "log-level-console=error", "archive-async=y", "archive-get-queue-max=1GiB",
		"[main]", "pg1-path=" + s.DataDir, "pg1-socket-path=" + s.SocketDir, fmt.Sprintf("pg1-port=%d", s.Port), "pg1-user=postgres",
	}
	if err := os.WriteFile(p.conf, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.run("stanza-create")
	return p
}

// command is one of its commands, as a shell takes it.
func (p *pgbackrest) command(command string) string {
	return "pgbackrest --config=" + p.conf + " --stanza=main " + command
}

func (p *pgbackrest) run(command string) cost { return p.b.sh(p.command(command)) }

// archives lets the server archive with the command from now on.
func archives(t *testing.T, s *harness.Server, command string) {
	t.Helper()
	s.Exec(t, "ALTER SYSTEM SET archive_command = '"+command+"'", "SELECT pg_reload_conf()")
}

// TestPeerBackup compares backups and restores of a full and seven incrementals
// with 1% of the pages each, in which each tool has its own full backup before.
func TestPeerBackup(t *testing.T) {
	s, b, size := incrementalSite(t, harness.DefaultMajor, scale(t, "BENCH_PEER", 100))
	b.env = append(b.env, "AGENT_COMPRESSION=lz4")
	p := newPgBackRest(t, b, s)
	s.AppendConf(t, map[string]string{"wal_keep_size": "16GB"})
	agent := func(args ...string) func() cost {
		return func() cost {
			// What went to the other one's archive is brought before: it has no hole.
			archives(t, s, harness.AgentBinary(t)+" wal-push %p")
			s.Exec(t, "SELECT pg_switch_wal()")
			b.sh("for f in " + s.DataDir + "/pg_wal/archive_status/*.done; do " + harness.AgentBinary(t) + " wal-push " + s.DataDir + "/pg_wal/$(basename $f .done); done")
			return b.agent(nil, args...)
		}
	}
	peer := func(command string) func() cost {
		return func() cost {
			archives(t, s, p.command("archive-push %p"))
			return p.run(command)
		}
	}
	names := []string{"agent", "pgBackRest"}
	table(t, fmt.Sprintf("a full backup of %.1f GB, lz4", float64(size)/1e9), size, names,
		rounds(scale(t, "BENCH_ROUNDS", 3), agent("backup-push", "--full"), peer("--type=full backup")))
	made := make([]cost, 2)
	for round := range 7 {
		change(t, s, round)
		for i, c := range []cost{agent("backup-push")(), peer("--type=incr backup")()} {
			if made[i].wall == 0 || c.wall < made[i].wall {
				made[i] = c
			}
		}
	}
	table(t, "an incremental, 1% of the pages changed, the best of seven", size, names, made)
	table(t, "a restore of the last one", size, names, rounds(scale(t, "BENCH_ROUNDS", 3),
		func() cost {
			b.sh("rm -rf restored; sync -f .")
			return b.agent(nil, "backup-fetch", filepath.Join(b.dir, "restored"))
		},
		func() cost {
			b.sh("rm -rf restored; mkdir -m 700 restored; sync -f .")
			return p.run("--pg1-path=" + filepath.Join(b.dir, "restored") + " restore")
		}))
}

// TestPeerWAL compares how a backlog is archived, and how a recovery gets it.
func TestPeerWAL(t *testing.T) {
	kind, count := walKinds()[0], scale(t, "BENCH_SEGMENTS", 200)
	t.Run("backlog", func(t *testing.T) {
		b := newBacklog(t, kind, count)
		p := newPgBackRest(t, b.w, b.s)
		url := filepath.Join(b.w.dir, "again")
		costs := rounds(scale(t, "BENCH_ROUNDS", 3),
			func() cost { return b.archive(t, []string{"AGENT_COMPRESSION=lz4"}, url, "") },
			func() cost {
				p.b.sh("rm -rf " + p.dir + "/repo/archive/main/*-1/0* " + p.dir + "/spool/*")
				return b.timed(t, p.command("archive-push %p"), "archive-push")
			})
		segmentTable(t, fmt.Sprintf("a backlog of %d segments of pgbench to a folder, lz4", b.count), b.count, 0, []string{"agent", "pgBackRest"}, costs)
	})
	t.Run("recovery", func(t *testing.T) {
		a := newArchive(t, kind, count, "AGENT_COMPRESSION=lz4")
		s := harness.StartExisting(t, a.s.DataDir, a.s.Major, nil, a.w.env...)
		p := newPgBackRest(t, a.w, s)
		s.Stop(t)
		a.w.sh("for f in " + a.plain + "/????????????????????????; do " + p.command("--no-archive-async archive-push $f") + "; done")
		costs := rounds(scale(t, "BENCH_ROUNDS", 3),
			func() cost { return a.recover(t, "") },
			func() cost {
				a.w.sh("rm -rf " + p.dir + "/spool/*")
				recovered := filepath.Join(a.w.dir, "recovered")
				return a.recover(t, p.command("--pg1-path="+recovered+` archive-get %f "%p"`))
			},
			func() cost { return a.recover(t, "cp "+a.plain+"/%f %p") })
		segmentTable(t, fmt.Sprintf("recovery of %d segments of pgbench from a folder, lz4", count), count, 0, []string{"agent", "pgBackRest", "cp"}, costs)
	})
}
