package e2e_test

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"agent/testing/harness"
	"agent/testing/stores"
)

// fallBehind writes WAL until the server has given the slot "one" up.
func (s *site) fallBehind(t testing.TB) {
	t.Helper()
	await(t, "the loss of the slot", func() bool {
		s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 10000) g", "SELECT pg_switch_wal()", "CHECKPOINT")
		return s.QueryInt(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'one' AND wal_status = 'lost'") == 1
	})
}

// previous is the segment before that of a name; they have 1 MiB.
func previous(t testing.TB, name string) string {
	t.Helper()
	n, err := strconv.ParseUint(name[8:16]+name[21:], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s%08X%08X", name[:8], (n-1)>>12, (n-1)&0xfff)
}

// TestReceiveSlotLost has a receiver, whose repository is away, fall behind more
// than the server allows. It ends with what is to be done; and with --allow-gap
// it goes on with the oldest WAL that the server has.
func TestReceiveSlotLost(t *testing.T) {
	t.Parallel()
	for _, major := range harness.Majors() {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, receiving(major, map[string]string{"max_slot_wal_keep_size": "4MB", "max_wal_size": "4MB", "min_wal_size": "2MB"}))
			s.Exec(t, newStreamer, "CREATE TABLE t (i int, m text)")
			p := s.receiver(t)
			s.confirmed(t)
			back := gone(t, s.repo)
			s.fallBehind(t)
			back()
			hinted(t, p.Wait(), 9, "replication slot one keeps no WAL", "pg_drop_replication_slot", "--create-slot")

			s.Exec(t, "SELECT pg_drop_replication_slot('one')", "ALTER SYSTEM SET wal_keep_size = '100MB'", "SELECT pg_reload_conf()")
			for range 4 { // WAL that the new slot does not keep, and the server does
				s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 3000) g", "SELECT pg_switch_wal()")
			}
			s.Exec(t, "CHECKPOINT")
			oldest := s.QueryString(t, "SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'")
			env := s.receiverEnv(t, s.Port, "receiver")
			hinted(t, harness.Agent(t, env, "wal-receive", "--slot", "one", "--create-slot", "--once"), 9, "there would be a gap", " to "+previous(t, oldest)+" ", "--allow-gap")
			must(t, harness.Agent(t, env, "wal-receive", "--slot", "one", "--create-slot", "--once", "--allow-gap"))
			s.walObject(t, oldest)
		})
	}
}

// TestReceiveSlotInUse waits until another receiver lets go of the slot.
func TestReceiveSlotInUse(t *testing.T) {
	t.Parallel()
	s := newSite(t, receiving(15, map[string]string{"wal_keep_size": "1GB"}))
	s.Exec(t, newStreamer, "CREATE TABLE t (i int)")
	first := s.receiver(t)
	s.confirmed(t)
	second := harness.StartAgent(t, s.receiverEnv(t, s.Port, "other"), "wal-receive", "--slot", "one", "--flush-interval", "200ms")
	await(t, "the refusal", func() bool { return strings.Contains(second.Stderr(), "is active for PID") })
	if text := second.Stderr(); !strings.Contains(text, "each needs its own") || strings.Contains(text, "receiving WAL") {
		t.Errorf("it is not told what is wrong:\n%s", text)
	}
	stopped(t, first)
	await(t, "the second one's connection", func() bool { return strings.Contains(second.Stderr(), "receiving WAL") })
	s.Exec(t, "INSERT INTO t VALUES (1)")
	s.confirmed(t)
	stopped(t, second)
	s.same(t)
}

// proxied stands between the server and who connects to the port.
func (s *site) proxied(t testing.TB) (p *stores.FaultProxy, port int) {
	t.Helper()
	p = stores.NewFaultProxy(t, "127.0.0.1:"+strconv.Itoa(s.Port))
	port, err := strconv.Atoi(p.Address[strings.LastIndexByte(p.Address, ':')+1:])
	if err != nil {
		t.Fatal(err)
	}
	return p, port
}

// TestReceiveSlowNetwork has a server that waits for a second only, whose
// questions arrive behind the WAL of many. The connection stays.
func TestReceiveSlowNetwork(t *testing.T) {
	t.Parallel()
	plan := receiving(15, map[string]string{"wal_sender_timeout": "1s"})
	plan.WALSegSizeMB = 16
	s := newSite(t, plan)
	s.Exec(t, newStreamer, "CREATE TABLE t (i int, m text)")
	slow, port := s.proxied(t)
	// So that nothing is stored, of which there would be news.
	agent := harness.StartAgent(t, s.receiverEnv(t, port, "receiver"), "wal-receive", "--slot", "one", "--create-slot", "--flush-interval", "1h")
	written := func(lsn string) bool {
		return s.QueryInt(t, "SELECT count(*) FROM pg_stat_replication WHERE write_lsn >= $1::text::pg_lsn", lsn) == 1
	}
	lsn := s.LSN(t)
	await(t, "the connection", func() bool { return written(lsn) })
	pid := s.QueryInt(t, "SELECT pid FROM pg_stat_replication")
	slow.Bandwidth(t, 1000)
	s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 50000) g")
	lsn = s.LSN(t)
	await(t, "the WAL", func() bool { return written(lsn) })
	if now := s.QueryInt(t, "SELECT pid FROM pg_stat_replication"); now != pid {
		t.Errorf("it had to connect again:\n%s", agent.Stderr())
	}
	slow.Heal()
	stopped(t, agent)
}

// TestReceiveBehind receives from a standby that has less than the repository
// already.
func TestReceiveBehind(t *testing.T) {
	t.Parallel()
	s := newSite(t, receiving(15, map[string]string{"wal_keep_size": "1GB"}))
	s.Exec(t, newStreamer, "CREATE TABLE t (i int)")
	p := s.receiver(t)
	s.confirmed(t)
	s.push(t)
	link, port := s.proxied(t)
	standby := s.standbyOf(t, 15, port)
	received := func() string {
		return standby.QueryString(t, "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')::text")
	}
	s.Exec(t, "INSERT INTO t VALUES (1)")
	lsn := s.LSN(t)
	await(t, "the standby", func() bool {
		return s.QueryInt(t, "SELECT ($1::text::pg_lsn <= $2::text::pg_lsn)::int", lsn, received()) == 1
	})
	link.Down()
	await(t, "the end of its streaming", func() bool { return standby.QueryInt(t, "SELECT count(*) FROM pg_stat_wal_receiver") == 0 })
	s.Exec(t, "INSERT INTO t VALUES (2)")
	s.confirmed(t)
	stopped(t, p)
	must(t, harness.Agent(t, s.receiverEnv(t, standby.Port, "beside"), "wal-receive", "--slot", "two", "--create-slot", "--once"))
}

// TestReceiveSegmentSizes recovers what was received of segments that are built
// in memory and of such that are not; those of 1 GiB go the same way.
func TestReceiveSegmentSizes(t *testing.T) {
	t.Parallel()
	for _, size := range []int{64, 256} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			t.Parallel()
			plan := receiving(15, nil)
			plan.WALSegSizeMB = size
			s := newSite(t, plan)
			s.Exec(t, newStreamer, "CREATE TABLE t (i int)")
			p := s.receiver(t)
			s.confirmed(t)
			s.push(t)
			s.Exec(t, "INSERT INTO t VALUES (1)") // in the segment behind the backup's
			s.confirmed(t)
			s.Kill(t)
			stopped(t, p)
			r := s.recovered(t, 15)
			if n := r.QueryInt(t, "SELECT count(*) FROM t"); n != 1 {
				t.Errorf("%d rows were recovered", n)
			}
		})
	}
}

// TestReceiveBestEffort has a second repository that is away for a while. It
// delays nothing, and lacks nothing afterwards.
func TestReceiveBestEffort(t *testing.T) {
	t.Parallel()
	base := harness.TempDir(t)
	near, far, config := filepath.Join(base, "near"), filepath.Join(base, "far"), filepath.Join(base, "agent.yaml")
	writeFile(t, config, fmt.Appendf(nil, "repositories:\n  - {name: near, url: %s}\n  - {name: far, url: %s, required: false}\n", near, far))
	s := &site{base: base, repo: near, settings: []string{"AGENT_CONFIG=" + config, "AGENT_STATE_DIR=" + filepath.Join(base, "state")}}
	s.list = s.settings[0]
	must(t, harness.Agent(t, s.settings, "repo", "init"))
	s.Server = harness.Start(t, harness.Options{NoFsync: true, WALSegSizeMB: 1, Conf: map[string]string{"wal_keep_size": "1GB"}})
	s.Exec(t, newStreamer, "CREATE TABLE t (i int, m text)")
	write := func() {
		s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
		s.confirmed(t)
		s.Exec(t, "INSERT INTO t VALUES (0, 'in a range')")
		s.confirmed(t)
	}
	p := s.receiver(t)
	write()
	back := gone(t, far)
	write()
	back()
	write()
	stopped(t, p)
	if len(copies(t, far)) == 0 || len(copies(t, far)) >= len(copies(t, near)) {
		t.Errorf("%d of %d objects arrived there", len(copies(t, far)), len(copies(t, near)))
	}
	must(t, harness.Agent(t, s.receiverEnv(t, s.Port, "receiver"), "repo", "sync"))
	n := copies(t, near)
	f := copies(t, far)
	for key := range n {
		if _, ok := f[key]; !ok {
			t.Errorf("%s is not there", key)
		}
	}
	s.same(t)
}
