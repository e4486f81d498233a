package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"agent/testing/harness"
)

// lineage is a server with a full backup, of which an incremental one would be
// taken now, and what it holds.
type lineage struct {
	*site
	full incremental
}

// newLineage makes such a server, with segments of 1 MB.
func newLineage(t *testing.T, p plan) *lineage {
	t.Helper()
	p.WALSegSizeMB = 1
	conf := incrementalConf(p.Major)
	delete(conf, "summarize_wal")
	for k, v := range p.Conf {
		conf[k] = v
	}
	p.Conf = conf
	s := newSite(t, p)
	s.Exec(t, filled("kept", 3000), filled("touched", 1000))
	return &lineage{site: s, full: s.pushed(t)}
}

// touch changes something and lets it be archived.
func (l *lineage) touch(t *testing.T) {
	t.Helper()
	l.Exec(t, "UPDATE touched SET t = t || 'x' WHERE i % 10 = 0", "INSERT INTO kept SELECT g, 'new' FROM generate_series(1, 10) g")
	l.switchWAL(t)
}

// restores fails the test unless a backup is restored to what the server holds.
func (l *lineage) restores(t *testing.T, b incremental, args ...string) {
	t.Helper()
	want := read(t, l.Server)
	l.switchWAL(t)
	c := l.recoverIt(t, b.Name, nil, args...)
	want.check(t, c)
	healthy(t, c)
	c.Stop(t)
}

// never runs backup-push in all its ways, none of which may make an incremental
// backup. It ends with one that nobody asked to be full, and returns it.
func (l *lineage) never(t *testing.T, why string) incremental {
	t.Helper()
	before := len(l.backups(t))
	for _, d := range detectors(l.Major) {
		r := l.agent(t, "backup-push", "--json", "--parent", l.full.Name, "--detect", d.flag)
		if r.Code == 0 {
			if b := parse[incremental](t, r.Stdout); b.Type != "full" {
				t.Errorf("with --detect %s: %q\n%s", d.flag, b.Type, r.Stderr)
			}
			before++
		} else if !strings.Contains(r.Stderr, "agent: hint: ") {
			t.Errorf("with --detect %s the message has no hint:\n%s", d.flag, r.Stderr)
		}
		if n := len(l.backups(t)); n != before {
			t.Errorf("with --detect %s (status %d) there are %d backups, not %d", d.flag, r.Code, n, before)
		}
	}
	return l.mustBeFull(t, why)
}

// TestIncrementalAfterMinimal has wal_level=minimal in between, in which a table
// was filled without WAL. Where so little WAL was written meanwhile that it lies
// within one segment, the archive has no gap.
func TestIncrementalAfterMinimal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		major  int
		within bool
	}{{13, true}, {15, false}, {18, true}} {
		t.Run(strconv.Itoa(c.major), func(t *testing.T) {
			t.Parallel()
			l := newLineage(t, plan{Options: harness.Options{Major: c.major}})
			conf := map[string]string{"wal_level": "minimal", "archive_mode": "off", "max_wal_senders": "0"}
			if c.within {
				conf["wal_skip_threshold"] = "0"
			}
			l.AppendConf(t, conf)
			l.Restart(t)
			first := insertLSN(t, l.Server)
			l.Exec(t, "BEGIN; TRUNCATE touched; INSERT INTO touched SELECT g, repeat('no WAL', 50) FROM generate_series(1, 6000) g; COMMIT")
			last := insertLSN(t, l.Server)
			if within := first>>20 == last>>20; within != c.within {
				t.Fatalf("from %s to %s the level was minimal", first, last)
			}
			l.AppendConf(t, map[string]string{"wal_level": "replica", "archive_mode": "on", "max_wal_senders": "10"})
			l.Restart(t)
			l.touch(t)
			if !c.within {
				l.restores(t, l.never(t, "wal segment"))
				return
			}
			refused(t, l.agent(t, "backup-push", "--parent", l.full.Name, "--detect", "summaries"), 2, "minimal")
			b := l.pushed(t) // only files that are new since were written without LSNs
			if said := strings.Join(b.Reasons, "\n"); b.Detector == "summaries" || !strings.Contains(said, "minimal") {
				t.Errorf("%q by %q: %s", b.Type, b.Detector, said)
			}
			l.restores(t, b)
		})
	}
}

// TestIncrementalAfterChecksums switches page checksums, which rewrites or leaves
// all pages without WAL.
func TestIncrementalAfterChecksums(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{})
	l.Exec(t, filled("unseen", 2000), "SELECT count(*) FROM unseen")
	l.full = l.pushed(t, "--full")
	original := l.full
	l.checksums(t, "--disable")
	l.full = l.never(t, "checksum")
	// Without checksums and wal_log_hints no page of the table gets a new LSN.
	l.Exec(t, "VACUUM unseen")
	l.touch(t)
	b := l.incremental(t, l.full.Name, detectors(l.Major)[0])
	l.restores(t, b)

	l.checksums(t, "--enable")
	refused(t, l.agent(t, "backup-push", "--parent", b.Name), 2, "checksum")
	// The first backup had them, too.
	for _, args := range [][]string{{"--parent", original.Name, "--detect", "lsn"}, nil} {
		r := l.agent(t, append([]string{"backup-push", "--json"}, args...)...)
		if r.Code != 0 && args != nil {
			continue
		}
		b := parse[incremental](t, must(t, r).Stdout)
		want := read(t, l.Server)
		l.switchWAL(t)
		c := l.recoverIt(t, b.Name, nil)
		want.check(t, c)
		c.Exec(t, "DELETE FROM unseen WHERE i % 3 = 0")
		healthy(t, c)
		c.Stop(t)
		checksums(t, c)
	}
}

// checksums switches page checksums.
func (l *lineage) checksums(t *testing.T, to string) {
	t.Helper()
	l.Stop(t)
	l.Run(t, "pg_checksums", to, "-D", l.DataDir)
	l.Restart(t)
	l.touch(t)
}

// TestIncrementalByLSNAfterBackup takes one right after another backup, when the
// last file that was archived is that one's history file, and the segments that
// were archived before it go from pg_wal with this one's checkpoint.
func TestIncrementalByLSNAfterBackup(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{})
	l.touch(t)
	l.pushed(t)
	await(t, "the archiving of the backup's history file", func() bool {
		return strings.HasSuffix(l.QueryString(t, "SELECT last_archived_wal FROM pg_stat_archiver"), ".backup")
	})
	l.restores(t, l.incremental(t, l.full.Name, detector{"lsn", "page-lsn"}))
}

// gap makes the archive lack segments that the server has removed, which the
// agent has never seen.
func (l *lineage) gap(t *testing.T) {
	t.Helper()
	command := l.QueryString(t, "SHOW archive_command")
	set := func(command string) {
		l.AppendConf(t, map[string]string{"archive_command": command})
		l.Exec(t, "SELECT pg_reload_conf()")
		await(t, "the new archive_command", func() bool { return l.QueryString(t, "SHOW archive_command") == command })
	}
	set("true")
	l.Exec(t, "UPDATE touched SET t = reverse(t)")
	missing := l.switchWAL(t)
	l.touch(t)
	set(command)
	l.touch(t)
	l.Exec(t, "CHECKPOINT")
	await(t, "the end of "+missing, func() bool {
		l.switchWAL(t)
		l.Exec(t, "CHECKPOINT")
		return !exists(filepath.Join(l.DataDir, "pg_wal", missing))
	})
}

// TestIncrementalOverGap has a gap in the archive between the two backups.
func TestIncrementalOverGap(t *testing.T) {
	t.Parallel()
	t.Run("13", func(t *testing.T) {
		t.Parallel()
		l := newLineage(t, plan{Options: harness.Options{Major: 13}})
		l.gap(t)
		l.restores(t, l.never(t, "00000001"))
	})
	t.Run("18 with summaries of its own", func(t *testing.T) {
		t.Parallel()
		l := newLineage(t, plan{Options: harness.Options{Major: 18, Conf: map[string]string{"summarize_wal": "on"}}})
		l.gap(t)
		b := l.pushed(t)
		if b.Type != "incremental" || b.Detector != "server-summaries" {
			t.Errorf("%q by %q", b.Type, b.Detector)
		}
		if said := strings.Join(b.Reasons, "\n"); !strings.Contains(said, "00000001") {
			t.Errorf("what is missing is not said:\n%s", said)
		}
		l.restores(t, b)
	})
}

// TestIncrementalLostSummaries takes away the summaries, both those of the host
// and those of the repository. What the archive and the server have is enough.
func TestIncrementalLostSummaries(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{})
	l.touch(t)
	for _, pattern := range []string{l.repo + "/cluster/*/summary", l.state + "/summary", l.state + "/*/summary", l.state + "/summary*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := l.pushed(t)
	if b.Type != "incremental" {
		t.Errorf("%q: %q", b.Type, b.Reasons)
	}
	l.restores(t, b)
}

// TestIncrementalAfterRecovery restores the server in its place to a moment
// after or before the end of the last backup, and goes on from there.
func TestIncrementalAfterRecovery(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 17} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			l := newLineage(t, plan{Options: harness.Options{Major: major}})
			l.touch(t)
			second := l.incremental(t, l.full.Name, detectors(major)[0])
			l.touch(t)
			l.Exec(t, "SELECT pg_create_restore_point('here')", filled("lost", 500))
			l.touch(t)
			l.rewind(t, second.Name, "here")

			// The history up to here is that of the backup, so it fits.
			l.Exec(t, "DELETE FROM touched WHERE i % 7 = 0")
			l.restores(t, l.incremental(t, second.Name, detectors(major)[0]))
			// Page LSNs are believed only of a server that runs since before the parent.
			refused(t, l.agent(t, "backup-push", "--parent", second.Name, "--detect", "lsn"), 2, "was started since")

			// Of a backup that ended after the moment to which the server went
			// back, nothing may be inherited.
			l.Exec(t, "SELECT pg_create_restore_point('early')")
			l.switchWAL(t)
			l.Exec(t, "UPDATE kept SET t = 'of a lost history' WHERE i % 5 = 0")
			lost := l.pushed(t)
			l.rewind(t, second.Name, "early")
			l.Exec(t, "UPDATE kept SET t = 'of the new history' WHERE i % 11 = 0")
			l.switchWAL(t)
			r := l.agent(t, "backup-push", "--json", "--parent", lost.Name)
			if r.Code == 0 {
				if b := parse[incremental](t, r.Stdout); b.Type != "full" {
					t.Errorf("%q of %q", b.Type, b.Parent)
				}
			}
			b := l.pushed(t)
			if b.Parent == lost.Name {
				t.Errorf("%q of a lost history", b.Type)
			}
			l.restores(t, b)
		})
	}
}

// rewind restores the server in its place from a backup to a restore point, with
// the host's state as it was.
func (l *lineage) rewind(t *testing.T, name, point string) {
	t.Helper()
	l.Stop(t)
	if err := os.RemoveAll(l.DataDir); err != nil {
		t.Fatal(err)
	}
	must(t, harness.Agent(t, l.env(), "backup-fetch", l.DataDir, name, "--target-name", point, "--target-action", "promote", "--take-over"))
	l.Server = harness.StartExisting(t, l.DataDir, l.Major, nil)
	if l.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
}

// TestIncrementalAfterCopy puts a copy of the data directory of before the last
// backup back, without recovery. The timeline is the same, the WAL is another.
func TestIncrementalAfterCopy(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{})
	l.Stop(t)
	old := filepath.Join(harness.TempDir(t), "old")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", l.DataDir, old).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v\n%s", err, out)
	}
	l.Restart(t)
	l.Exec(t, "UPDATE kept SET t = 'of a lost history' WHERE i % 5 = 0")
	l.touch(t)
	lost := l.pushed(t)
	l.Stop(t)
	if err := os.RemoveAll(l.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(old, l.DataDir); err != nil {
		t.Fatal(err)
	}
	l.Restart(t)
	// It goes beyond where the lost history ended. Its WAL is refused.
	l.Exec(t, "UPDATE kept SET t = 'of the new history' WHERE i % 11 = 0")
	await(t, "a later position than "+lost.StopLSN, func() bool {
		l.Exec(t, "INSERT INTO touched SELECT g, repeat('x', 200) FROM generate_series(1, 2000) g")
		return insertLSN(t, l.Server) > lsn(t, lost.StopLSN)+2<<20
	})
	before := l.backups(t)
	for _, d := range append(detectors(l.Major), detector{flag: "auto"}) {
		r := l.agent(t, "backup-push", "--json", "--wal-timeout", "2s", "--detect", d.flag)
		if r.Code == 0 {
			t.Errorf("with --detect %s a backup was made although its WAL cannot be archived:\n%s", d.flag, r.Stdout)
		}
	}
	if after := l.backups(t); len(after) != len(before) {
		t.Errorf("the backups were %q and are %q", before, after)
	}
}

// TestIncrementalOnAnotherHost lets a standby on another host take over, which
// has not the first one's state.
func TestIncrementalOnAnotherHost(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			l := newLineage(t, plan{sealed: true, Options: harness.Options{Major: major}})
			l.touch(t)
			first := l.incremental(t, l.full.Name, detectors(major)[0])

			two := *l
			site := *l.site
			two.site = &site
			two.state = filepath.Join(harness.TempDir(t), "state")
			two.settings = []string{two.where(), "AGENT_STATE_DIR=" + two.state, "AGENT_RECIPIENTS=" + two.recipient}
			dir := filepath.Join(harness.TempDir(t), "second")
			must(t, harness.Agent(t, append(two.settings, "AGENT_IDENTITY_FILE="+l.identity), "backup-fetch", dir))
			harness.MakeStandby(t, dir)
			conf := l.StandbyConf()
			conf["archive_mode"] = "on"
			conf["archive_command"] = harness.AgentBinary(t) + " wal-push %p --repository " + l.repo + " --state-dir " + two.state + " --recipients " + l.recipient
			two.Server = harness.StartExisting(t, dir, major, conf)
			two.WaitStreaming(t)
			l.Exec(t, "DELETE FROM kept WHERE i % 9 = 0")
			two.WaitReplayed(t, l.LSN(t))
			l.Stop(t)
			two.Promote(t)
			two.Exec(t, "UPDATE touched SET t = 'promoted' WHERE i % 3 = 0")
			two.switchWAL(t)

			// It cannot open what the first one has stored, so it says so.
			hinted(t, two.agent(t, "backup-push", "--parent", first.Name), 2, first.Name, "identity")
			alone := two.mustBeFull(t, "identit|state directory|"+strings.ToLower(l.Name(t)))
			two.restores(t, alone)
			// Its own it has.
			two.touch(t)
			own := two.incremental(t, alone.Name, detectors(major)[0])
			two.restores(t, own)

			// With the identity it continues what the first one began.
			open := two
			openSite := *two.site
			open.site = &openSite
			open.state = filepath.Join(harness.TempDir(t), "other state")
			open.settings = []string{open.where(), "AGENT_STATE_DIR=" + open.state, "AGENT_RECIPIENTS=" + open.recipient, "AGENT_IDENTITY_FILE=" + l.identity}
			open.restores(t, open.incremental(t, first.Name, detectors(major)[0]))
		})
	}
}

// Name is the name of this host as backups have it.
func (l *lineage) Name(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestIncrementalAfterUpgrade upgrades the cluster in its place, by links to the
// old one's files.
func TestIncrementalAfterUpgrade(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{Options: harness.Options{Major: 14}})
	l.touch(t)
	old := l.DataDir
	l.Stop(t)
	upgraded := harness.Upgrade(t, l.Server, harness.DefaultMajor, 1)
	l.Server = harness.StartExisting(t, upgraded, harness.DefaultMajor, map[string]string{
		"archive_mode": "on", "autovacuum": "off", "max_prepared_transactions": "10",
		"archive_command": harness.AgentBinary(t) + " wal-push %p --state-dir " + l.state + " --repository " + l.repo,
	})
	if upgraded == old {
		t.Fatal("the new cluster is where the old one was")
	}
	l.Exec(t, "UPDATE touched SET t = 'upgraded' WHERE i % 6 = 0")
	if r := l.agent(t, "backup-push", "--json", "--parent", l.full.Name); r.Code == 0 {
		if b := parse[incremental](t, r.Stdout); b.Type != "full" {
			t.Errorf("%q of a backup of the old cluster", b.Type)
		}
	}
	b := l.pushed(t, "--full")
	l.touch(t)
	l.restores(t, l.incremental(t, b.Name, detectors(l.Major)[0]), "--system-identifier", fmt.Sprint(systemIdentifier(t, l.Server)))
}

// systemIdentifier is the cluster's.
func systemIdentifier(t *testing.T, s *harness.Server) int64 {
	t.Helper()
	return s.QueryInt(t, "SELECT system_identifier FROM pg_control_system()")
}
