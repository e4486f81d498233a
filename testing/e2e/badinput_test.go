package e2e_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"agent/testing/harness"
)

// TestBadInput gives backup-push and its kin what the real world gives them.
// Each case is one clear error with a hint and a documented status, after
// which everything works as before.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{})
	s.Exec(t, "CREATE ROLE weak LOGIN", "CREATE ROLE granted LOGIN", "GRANT pg_read_all_settings TO granted",
		"GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO granted")
	before := s.push(t)
	foreign := harness.Start(t, harness.Options{NoFsync: true, Conf: map[string]string{"archive_mode": "on", "archive_command": "true"}})
	off := harness.Start(t, harness.Options{NoFsync: true, Conf: map[string]string{"wal_level": "minimal", "max_wal_senders": "0"}})
	full := filepath.Join(harness.TempDir(t), "full")
	makeDir(t, full)
	writeFile(t, filepath.Join(full, "something"), nil)
	empty := harness.TempDir(t)
	readOnly := filepath.Join(harness.TempDir(t), "closed")
	makeDir(t, readOnly)
	closed(t, readOnly)

	for _, c := range []struct {
		name  string
		env   []string // after the site's
		args  []string
		code  int
		texts []string
	}{
		{"wrong data directory", nil, []string{"backup-push", "/nonexistent"}, 2, []string{"/nonexistent"}},
		{"another server's data directory", nil, []string{"backup-push", foreign.DataDir}, 4, []string{foreign.DataDir}},
		{"repository in the data directory", []string{"AGENT_REPOSITORY=" + s.DataDir + "/repo"}, []string{"repo", "init"}, 0, nil},
		{"unreachable server", []string{"PGPORT=1"}, []string{"backup-push"}, 9, []string{"PGPORT"}},
		{"no such role", []string{"PGUSER=nobody_there"}, []string{"backup-push"}, 9, []string{"nobody_there"}},
		{"no such database", []string{"PGDATABASE=nowhere"}, []string{"backup-push"}, 9, []string{"nowhere"}},
		{"without grants", []string{"PGUSER=weak"}, []string{"backup-push"}, 9, []string{"GRANT", "weak"}},
		{"archive_mode off, wal_level minimal", off.Env(), []string{"backup-push"}, 9, []string{"archive_mode", "wal_level"}},
		{"no repository", []string{"AGENT_REPOSITORY=" + empty}, []string{"backup-push"}, 3, []string{"agent repo init", "repository.json"}},
		{"no folder", []string{"AGENT_REPOSITORY=" + s.base + "/nowhere"}, []string{"backup-push"}, 5, []string{"agent repo init", "nowhere"}},
		{"no repository set", []string{"AGENT_REPOSITORY="}, []string{"backup-push"}, 2, []string{"AGENT_REPOSITORY"}},
		{"repository without permission", []string{"AGENT_REPOSITORY=" + readOnly}, []string{"backup-push"}, 5, []string{readOnly}},
		{"state without permission", []string{"AGENT_STATE_DIR=" + readOnly + "/state"}, []string{"backup-push"}, 2, []string{readOnly}},
		{"second init", nil, []string{"repo", "init"}, 14, []string{s.repo}},
		{"unknown flag", nil, []string{"backup-push", "--nonsense"}, 2, []string{"--nonsense"}},
		{"bad setting", []string{"AGENT_CONCURRENCY=0"}, []string{"backup-push"}, 2, []string{"AGENT_CONCURRENCY"}},
		{"no such backup", nil, []string{"backup-show", "20200101T000000Z-aaaaaa"}, 7, []string{"20200101T000000Z-aaaaaa"}},
		{"no backup's name", nil, []string{"backup-show", "nonsense"}, 2, []string{"nonsense"}},
		{"restore of no such backup", nil, []string{"backup-fetch", fresh(t), "20200101T000000Z-aaaaaa"}, 7, []string{"20200101T000000Z-aaaaaa"}},
		{"restore to a full directory", nil, []string{"backup-fetch", full}, 10, []string{full}},
		{"restore over the running server", nil, []string{"backup-fetch", s.DataDir}, 10, []string{"running", s.DataDir}},
		{"restore without permission", nil, []string{"backup-fetch", readOnly + "/x"}, 10, []string{readOnly}},
		{"unknown tablespace", nil, []string{"backup-fetch", fresh(t), "--tablespace-map", "/a=/b"}, 2, []string{"/a"}},
		{"malformed tablespace", nil, []string{"backup-fetch", fresh(t), "--tablespace-map", "/a"}, 2, []string{"OLD=NEW"}},
		{"time without zone", nil, []string{"backup-fetch", fresh(t), "--target-time", "2026-11-20 14:29:00"}, 2, []string{"zone"}},
		{"unknown action", nil, []string{"backup-fetch", fresh(t), "--target-action", "jump"}, 2, []string{"jump"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := harness.Agent(t, append(s.env(), c.env...), c.args...)
			if c.code == 0 {
				must(t, r)
				return
			}
			hinted(t, r, c.code, c.texts...)
		})
	}
	t.Run("backup into the data directory", func(t *testing.T) {
		inside := filepath.Join(s.DataDir, "repo")
		hinted(t, harness.Agent(t, append(s.env(), "AGENT_REPOSITORY="+inside), "backup-push"), 2, inside)
		if err := os.RemoveAll(inside); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("with grants alone", func(t *testing.T) {
		must(t, harness.Agent(t, append(s.env(), "PGUSER=granted"), "backup-push"))
	})
	if got := s.backups(t); len(got) != 2 || got[0] != before.Name {
		t.Errorf("the backups are %q", got)
	}
}

// TestWALDoesNotArrive takes a backup whose WAL goes elsewhere: it is none.
func TestWALDoesNotArrive(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]string{"failing": "false", "elsewhere": "true"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, plan{command: command})
			hinted(t, s.agent(t, "backup-push", "--wal-timeout", "2s"), 9, "archive_command", s.repo)
			if got := s.backups(t); len(got) != 0 {
				t.Errorf("the backups are %q", got)
			}
		})
	}
}

// TestIdentity restores without a key and with a wrong one, and shows that the
// database host needs none.
func TestIdentity(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{sealed: true})
	b := s.push(t)
	s.switchWAL(t)
	wrong := filepath.Join(s.base, "wrong.txt")
	must(t, harness.Agent(t, nil, "keygen", "-o", wrong))
	for name, env := range map[string][]string{
		"none":    {"AGENT_IDENTITY_FILE="},
		"wrong":   {"AGENT_IDENTITY_FILE=" + wrong},
		"missing": {"AGENT_IDENTITY_FILE=" + wrong + ".not"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := fresh(t)
			r := harness.Agent(t, append(s.elsewhere(), env...), "backup-fetch", dir)
			hinted(t, r, 11, "identity")
			if exists(filepath.Join(dir, "global")) {
				t.Error("something was restored")
			}
			r = harness.Agent(t, append(s.elsewhere(), env...), "wal-fetch", b.StartWAL, filepath.Join(harness.TempDir(t), "x"))
			hinted(t, r, 126, "identity")
		})
	}
	t.Run("database host", func(t *testing.T) {
		hinted(t, s.agent(t, "backup-fetch", fresh(t)), 11, "identity")
	})
	t.Run("command", func(t *testing.T) {
		env := append(s.elsewhere(), "AGENT_IDENTITY_FILE=", "AGENT_IDENTITY_COMMAND=cat "+s.identity)
		must(t, harness.Agent(t, env, "backup-fetch", fresh(t)))
	})
	t.Run("environment", func(t *testing.T) {
		secret := strings.TrimSpace(string(readFile(t, s.identity)))
		env := append(s.elsewhere(), "AGENT_IDENTITY_FILE=", "AGENT_IDENTITY="+secret)
		r := must(t, harness.Agent(t, env, "backup-fetch", fresh(t)))
		if strings.Contains(r.Stdout+r.Stderr, "AGE-SECRET-KEY") {
			t.Error("the secret key is printed")
		}
	})
}

// TestPromise6BadPages backs up a cluster with a damaged page: the backup is
// made, marked, and the page is named.
func TestPromise6BadPages(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{})
	s.Exec(t, "CREATE TABLE a AS SELECT g AS i, repeat('x', 100) AS m FROM generate_series(1, 5000) g", "VACUUM a", "CHECKPOINT")
	path := s.QueryString(t, "SELECT pg_relation_filepath('a')")
	s.Stop(t)
	full := filepath.Join(s.DataDir, path)
	body := readFile(t, full)
	const block = 7
	body[block*8192+5000] ^= 0x10
	writeFile(t, full, body)
	s.Restart(t)
	r := s.agent(t, "backup-push", "--json")
	hinted(t, r, 13, path, "block")
	if b := parse[backup](t, r.Stdout); b.BadPages != 1 {
		t.Errorf("%d bad pages", b.BadPages)
	}
	if show := must(t, s.agent(t, "backup-show", "LATEST")).Stdout; !strings.Contains(show, path+" block "+strconv.Itoa(block)) {
		t.Errorf("the page is not shown:\n%s", show)
	}
	if list := must(t, s.agent(t, "backup-list")).Stdout; !strings.Contains(list, "1 damaged page") {
		t.Errorf("the backup is not marked:\n%s", list)
	}
	dir := fresh(t)
	must(t, s.restore(t, dir)) // byte for byte what was read
	if string(readFile(t, filepath.Join(dir, path))) != string(body) {
		t.Error("the damaged table came back with other bytes")
	}
}

// TestNoHome runs the agent with the environment of somebody else, as a server
// has it that was started by root's hand: a repository is all that it needs.
func TestNoHome(t *testing.T) {
	t.Parallel()
	for _, env := range [][]string{{"HOME=/proc"}, {"HOME="}} {
		res := harness.Agent(t, append(env, "AGENT_REPOSITORY=/backup"), "config", "show")
		line := ""
		for l := range strings.Lines(res.Stdout) {
			if strings.HasPrefix(l, "state_dir ") {
				line = l
			}
		}
		fields := strings.Fields(line)
		if res.Code != 0 || len(fields) < 2 || !filepath.IsAbs(fields[1]) || strings.HasPrefix(fields[1], "/proc") {
			t.Errorf("%v: status %d, %q, %s", env, res.Code, line, res.Stderr)
		}
	}
}
