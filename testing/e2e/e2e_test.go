package e2e_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"agent/testing/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waitLimit bounds every wait for an event. It is no assertion about speed:
// only what hangs reaches it.
const waitLimit = time.Minute

// await waits until done says yes.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("waited %v for: %s", waitLimit, what)
		}
	}
}

// plan says what site to make.
type plan struct {
	harness.Options
	compression string // of WAL and backups; empty is the agent's default
	sealed      bool   // encrypt for a new recipient, whose identity only restores get
	command     string // archive_command, %s is the agent with its settings; empty is the usual one
	url         string // of the repository; empty is a folder of the test's
	list        string // AGENT_REPOSITORIES=..., of several repositories
	// reach is the environment without which the repository cannot be reached:
	// of the server, and of the agent wherever it runs.
	reach []string
}

// site is a server that archives into a repository of its own, made by
// `agent repo init`.
type site struct {
	*harness.Server
	base      string // folder of all that is not the server's
	repo      string // folder of the repository
	state     string // the agent's state on the database host
	recipient string // empty: not sealed
	identity  string // file with the secret key; empty: not sealed
	settings  []string
	reach     []string
	list      string
}

// newSite makes a repository and a server that archives into it.
func newSite(t testing.TB, p plan) *site {
	t.Helper()
	base := harness.TempDir(t)
	s := &site{base: base, repo: filepath.Join(base, "repo"), state: filepath.Join(base, "state")}
	if p.sealed {
		s.identity = filepath.Join(base, "identity.txt")
		s.recipient = strings.TrimSpace(must(t, harness.Agent(t, nil, "keygen", "-o", s.identity)).Stdout)
	}
	if p.url != "" {
		s.repo = p.url
	}
	s.reach, s.list = p.reach, p.list
	p.Env = append(p.Env, p.reach...)
	s.settings = append([]string{s.where(), "AGENT_STATE_DIR=" + s.state}, p.reach...)
	flags := []string{"--state-dir", s.state}
	if p.list == "" {
		flags = append(flags, "--repository", s.repo)
	} else {
		p.Env = append(p.Env, p.list)
	}
	if p.sealed {
		s.settings = append(s.settings, "AGENT_RECIPIENTS="+s.recipient)
		flags = append(flags, "--recipients", s.recipient)
	}
	if p.compression != "" {
		s.settings = append(s.settings, "AGENT_COMPRESSION="+p.compression)
		flags = append(flags, "--compression", p.compression)
	}
	must(t, harness.Agent(t, s.settings, "repo", "init"))
	command := p.command
	if command == "" {
		// With flags, not by the server's environment, so that a restored
		// server that goes on archiving finds its way, too.
		command = harness.AgentBinary(t) + " wal-push %p " + strings.Join(flags, " ")
	}
	conf := map[string]string{"archive_mode": "on", "archive_command": command}
	for k, v := range p.Conf {
		conf[k] = v
	}
	p.Conf, p.NoFsync = conf, true
	s.Server = harness.Start(t, p.Options)
	return s
}

// where is the setting that says where the repository is.
func (s *site) where() string {
	if s.list != "" {
		return s.list
	}
	return "AGENT_REPOSITORY=" + s.repo
}

// env is the environment of the agent on the database host: it can write and
// holds no identity.
func (s *site) env() []string { return slices.Concat(s.Server.Env(), s.settings) }

// elsewhere is the environment of the agent on another host that restores: it
// has the identity, another state directory and no server.
func (s *site) elsewhere() []string {
	env := append([]string{s.where(), "AGENT_STATE_DIR=" + filepath.Join(s.base, "elsewhere")}, s.reach...)
	if s.identity != "" {
		env = append(env, "AGENT_IDENTITY_FILE="+s.identity)
	}
	return env
}

// agent runs the agent on the database host.
func (s *site) agent(t testing.TB, args ...string) harness.Result {
	t.Helper()
	return harness.Agent(t, s.env(), args...)
}

// restore runs backup-fetch on another host.
func (s *site) restore(t testing.TB, args ...string) harness.Result {
	t.Helper()
	return harness.Agent(t, s.elsewhere(), append([]string{"backup-fetch"}, args...)...)
}

// must fails the test unless the agent ended with status 0.
func must(t testing.TB, r harness.Result) harness.Result {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("the agent ended with status %d:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	return r
}

// refused fails the test unless the agent ended with this status, with exactly
// one error line, a hint, and all the given texts among its messages.
func refused(t testing.TB, r harness.Result, code int, texts ...string) {
	t.Helper()
	if r.Code != code {
		t.Errorf("status %d, expected %d:\n%s%s", r.Code, code, r.Stdout, r.Stderr)
	}
	if n := strings.Count(r.Stderr, "agent: error: "); n != 1 {
		t.Errorf("%d errors are told, not one:\n%s", n, r.Stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.Stderr, text) {
			t.Errorf("%q is not told:\n%s", text, r.Stderr)
		}
	}
}

// hinted is refused for an error that must also say what to do.
func hinted(t testing.TB, r harness.Result, code int, texts ...string) {
	t.Helper()
	refused(t, r, code, append(texts, "agent: hint: ")...)
}

// backup is what the tests read of a backup's JSON.
type backup struct {
	Name     string `json:"name"`
	StartLSN string `json:"start_lsn"`
	StopLSN  string `json:"stop_lsn"`
	StartWAL string `json:"start_wal"`
	StopWAL  string `json:"stop_wal"`
	Timeline int    `json:"timeline"`
	BadPages int    `json:"bad_pages"`
	Packs    int    `json:"packs"`
}

// push takes a backup.
func (s *site) push(t testing.TB) backup {
	t.Helper()
	r := must(t, s.agent(t, "backup-push", "--json"))
	return parse[backup](t, r.Stdout)
}

// backups lists the backups.
func (s *site) backups(t testing.TB) []string {
	t.Helper()
	r := must(t, s.agent(t, "backup-list", "--json"))
	names := []string{}
	for _, b := range parse[[]backup](t, r.Stdout) {
		names = append(names, b.Name)
	}
	return names
}

// parse reads JSON.
func parse[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("parse %q: %v", text, err)
	}
	return v
}

// switchWAL ends the current segment and waits until it is archived. It
// returns the segment's name.
func (s *site) switchWAL(t testing.TB) string {
	t.Helper()
	// A switch right after another one does nothing: write something first.
	s.Exec(t, "SELECT pg_logical_emit_message(false, 'e2e', 'something')")
	name := s.QueryString(t, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	s.Exec(t, "SELECT pg_switch_wal()")
	s.awaitArchived(t, name)
	return name
}

// awaitArchived waits until the server believes that a segment is archived.
func (s *site) awaitArchived(t testing.TB, name string) {
	t.Helper()
	await(t, "the archiving of "+name, func() bool {
		return s.QueryString(t, "SELECT coalesce(max(last_archived_wal), '') FROM pg_stat_archiver") >= name
	})
}

// walObject is the path of an archived segment.
func (s *site) walObject(t testing.TB, name string) string {
	t.Helper()
	return s.one(t, "cluster/*/wal/"+name[:16]+"/"+name)
}

// backupDir is the folder of a backup.
func (s *site) backupDir(t testing.TB, name string) string {
	t.Helper()
	return s.one(t, "cluster/*/backup/"+name)
}

// one returns the only path in the repository that fits.
func (s *site) one(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.repo, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in the repository: %q (%v)", pattern, found, err)
	}
	return found[0]
}

// key is the key of an object's file.
func (s *site) key(t testing.TB, path string) string {
	t.Helper()
	key, err := filepath.Rel(s.repo, path)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// objects reads all files of a folder, by their paths below it. Links are not
// followed.
func objects(t testing.TB, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(path)
		rel, rerr := filepath.Rel(root, path)
		if rerr != nil {
			return rerr
		}
		all[rel] = string(body)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// exists tells whether there is such a file.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// readFile reads a file that must be there.
func readFile(t testing.TB, path string) []byte {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// writeFile writes a file that the agent may read and change.
func writeFile(t testing.TB, path string, body []byte) {
	t.Helper()
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Own(t, path)
}

// fresh is a path in a new folder that does not exist.
func fresh(t testing.TB) string {
	t.Helper()
	return filepath.Join(harness.TempDir(t), "restored")
}

// makeDir makes a folder that the server may use.
func makeDir(t testing.TB, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	harness.Own(t, path)
}

// awaitLine waits until the agent has told something. An agent that ends
// without it fails the test.
func awaitLine(t testing.TB, p *harness.Process, text string) {
	t.Helper()
	await(t, "the agent to say "+text, func() bool { return strings.Contains(p.Stderr(), text) || ended(p) })
	if !strings.Contains(p.Stderr(), text) {
		r := p.Wait()
		t.Fatalf("the agent ended with status %d without saying %q:\n%s%s", r.Code, text, r.Stdout, r.Stderr)
	}
}

// ended tells whether the agent has ended.
func ended(p *harness.Process) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}
