package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
)

// goodInfo is what a server says that is as it should be.
func goodInfo() postgres.Info {
	return postgres.Info{
		VersionNum: 180004, Major: 18, Version: "18.4", Role: "r", Database: "d", SystemIdentifier: 7, Timeline: 1,
		DataDirectory: "/data", WALLevel: "replica", ArchiveMode: "on", ArchiveCommand: "agent wal-push %p",
		FullPageWrites: true, DataChecksums: true, WALSegmentSize: 16 << 20, BlockSize: 8192,
	}
}

// TestServer judges what servers say that no test can make one say quickly.
func TestServer(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*postgres.Info)
		want   map[Name]Status
	}{
		{"good", func(*postgres.Info) {}, nil},
		{"logical, always", func(i *postgres.Info) { i.WALLevel, i.ArchiveMode = "logical", "always" }, nil},
		{"pages of 16 kB", func(i *postgres.Info) { i.BlockSize = 16384 }, map[Name]Status{ServerVersion: Failed}},
		{"archive_library", func(i *postgres.Info) { i.ArchiveLibrary, i.ArchiveCommand = "basic_archive", "" }, map[Name]Status{ServerArchiveCommand: Failed}},
		{"standby without archiving", func(i *postgres.Info) { i.InRecovery, i.ArchiveMode, i.ArchiveCommand = true, "off", "" }, map[Name]Status{ServerArchiveMode: Warning}},
		{"no grants", func(i *postgres.Info) { i.BackupDenied = true }, map[Name]Status{ServerGrants: Failed}},
		{"another program", func(i *postgres.Info) { i.ArchiveCommand = "wal-g wal-push %p" }, map[Name]Status{ServerArchiveCommand: Warning}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &server{run: newRun(t), session: session{info: goodInfo()}}
			c.change(&s.info)
			var l list
			s.checks(t.Context(), &l)
			for _, got := range l {
				want := c.want[got.Name]
				if want == "" && got.Status != OK && got.Status != Skipped || want != "" && got.Status != want {
					t.Errorf("%s is %s: %+v", got.Name, got.Status, got)
				}
				if got.Status == Failed && (got.Hint == "" || got.Kind != errs.Server) {
					t.Errorf("%+v", got)
				}
			}
		})
	}
}

// TestSkippedSwitch: where no segment can be switched, it says why.
func TestSkippedSwitch(t *testing.T) {
	for reason, change := range map[string]func(*server){
		"--no-switch": func(s *server) { s.NoSwitch = true },
		"connection":  func(s *server) { s.err = errors.New("x") },
		"off":         func(s *server) { s.info.ArchiveMode = "off" },
		"empty":       func(s *server) { s.info.ArchiveCommand = "" },
		"repository":  func(s *server) {},
	} {
		s := &server{run: newRun(t), session: session{info: goodInfo()}}
		change(s)
		var l list
		s.archiving(t.Context(), &l, nil)
		l.wants(t, ArchivingSwitch, Skipped, reason)
	}
}

// TestDeaf: a server that does not answer is given up.
func TestDeaf(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRun(t)
	r.sys.answer = 50 * time.Millisecond
	s := &server{run: r}
	r.ConnInfo = fmt.Sprintf("host=127.0.0.1 port=%s user=u password=hush sslmode=disable", port)
	s.connect(t.Context())
	defer s.disconnect(context.Background())
	var l list
	s.checks(t.Context(), &l)
	c := l.wants(t, ServerConnection, Failed, "did not answer within 50ms")
	if c.Kind != errs.Server {
		t.Errorf("kind %v", c.Kind)
	}
	l.wants(t, ServerVersion, Skipped)
}

// TestArchiver judges pg_stat_archiver.
func TestArchiver(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name  string
		stats postgres.ArchiverStats
		want  Status
		texts []string
	}{
		{"nothing yet", postgres.ArchiverStats{}, OK, []string{"nothing was archived yet"}},
		{"good", postgres.ArchiverStats{LastArchivedWAL: "A", LastArchivedTime: now, LastFailedTime: now.Add(-time.Hour), FailedCount: 3}, OK, []string{"the last file, A"}},
		{"failing", postgres.ArchiverStats{LastArchivedTime: now.Add(-time.Hour), LastFailedWAL: "B", LastFailedTime: now}, Failed, []string{"fails for B", "2 files wait", "archived since 2"}},
		{"always failing", postgres.ArchiverStats{LastFailedWAL: "B", LastFailedTime: now}, Failed, []string{"nothing was ever archived"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &server{run: newRun(t), session: session{info: goodInfo()}}
			s.info.DataDirectory = t.TempDir()
			status := filepath.Join(s.info.DataDirectory, "pg_wal", "archive_status")
			if err := os.MkdirAll(status, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"A.done", "B.ready", "C.ready"} {
				if err := os.WriteFile(filepath.Join(status, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var l list
			s.archiver(&l, c.stats)
			got := l.wants(t, ServerArchiver, c.want, c.texts...)
			if got.Facts[Waiting] != 2 || got.Facts[FailedCount] != c.stats.FailedCount {
				t.Errorf("facts %v", got.Facts)
			}
		})
	}
}

// TestDataDirectory reads control files that are not there, or another's.
func TestDataDirectory(t *testing.T) {
	s := &server{run: newRun(t), session: session{info: goodInfo()}}
	ask := func() list {
		var l list
		s.dataDirectory(t.Context(), &l)
		return l
	}
	s.info.DataDirectory = ""
	ask().wants(t, ServerDataDirectory, Skipped)
	s.info.DataDirectory = t.TempDir()
	ask().wants(t, ServerDataDirectory, Failed, "pg_control")
}

// TestState looks at state directories.
func TestState(t *testing.T) {
	r := newRun(t)
	ask := func(dataDir string) list {
		var l list
		r.state(&l, dataDir)
		return l
	}
	r.sys.statfs = func(string) (fileSystem, error) { return fileSystem{free: 2 << 30}, nil }
	ask("").only(t)
	left, err := os.ReadDir(r.StateDir)
	if err != nil || len(left) != 1 || left[0].Name() != "id" {
		t.Errorf("left are %v (%v)", left, err)
	}
	ask(filepath.Dir(r.StateDir)).only(t, StatePlace)
	r.sys.statfs = func(string) (fileSystem, error) { return fileSystem{free: 500 << 20, memory: true}, nil }
	l := ask("")
	l.only(t, StateSpace, StatePlace)
	l.wants(t, StatePlace, Warning, "tmpfs")
	l.wants(t, StateSpace, Warning)
	r.sys.statfs = func(string) (fileSystem, error) { return fileSystem{free: 5 << 20}, nil }
	if c := ask("").wants(t, StateSpace, Failed, "5.0 MiB"); c.Kind != errs.NoSpace {
		t.Errorf("kind %v", c.Kind)
	}
	// A file where the directory should be.
	r.StateDir = filepath.Join(r.StateDir, "id")
	r.sys = linux()
	if c := ask("").wants(t, StateDirectory, Failed, r.StateDir); c.Kind != errs.Config {
		t.Errorf("kind %v", c.Kind)
	}
	r.StateErr = errs.New(errs.Config, "Set it.", "there is none")
	l = ask("")
	l.wants(t, StateDirectory, Failed, "there is none", "Set it.")
	l.wants(t, StateSpace, Skipped)
}

// TestKeys looks at recipients and identities.
func TestKeys(t *testing.T) {
	const recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
	for _, c := range []struct {
		name                  string
		keys                  Keys
		recipients, identity  Status
		recipientsT, identitT string
	}{
		{"none", Keys{}, Warning, OK, "data 0", "no identity"},
		{"all", Keys{Data: []string{recipient}, WAL: []string{recipient}, Meta: []string{recipient}}, OK, OK, "everything is encrypted", ""},
		{"not data", Keys{WAL: []string{recipient}, Meta: []string{recipient}}, Warning, OK, "data 0, for WAL 1", ""},
		{"bad", Keys{Data: []string{recipient}, Meta: []string{"age1x"}}, Failed, OK, "recipients for meta", ""},
		{"command", Keys{Identity: true}, Warning, OK, "", "was not asked for"},
		{"good identity", Keys{Identity: true, LoadIdentity: func() ([]string, error) { return nil, nil }}, Warning, OK, "", "can restore"},
		{"open identity", Keys{Identity: true, LoadIdentity: func() ([]string, error) { return []string{"mode 0644"}, nil }}, Warning, Warning, "", "mode 0644"},
		{"bad identity", Keys{Identity: true, LoadIdentity: func() ([]string, error) { return nil, errors.New("no key in it") }}, Warning, Failed, "", "no key in it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRun(t)
			r.Keys = c.keys
			var l list
			r.keys(&l)
			l.wants(t, Recipients, c.recipients, c.recipientsT)
			l.wants(t, Identity, c.identity, c.identitT)
		})
	}
}

// TestConfig tells the file and its warnings.
func TestConfig(t *testing.T) {
	r := newRun(t)
	var l list
	r.config(&l)
	l.wants(t, Config, OK, "no configuration file")
	r.ConfigFile, r.Warnings = "/etc/agent/agent.yaml", []string{"one", "two"}
	l = nil
	r.config(&l)
	if len(l) != 2 || l[0].Status != Warning || !strings.Contains(l[1].Text, "two") {
		t.Errorf("%+v", l)
	}
}
