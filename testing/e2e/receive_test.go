package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"agent/testing/harness"
	"agent/testing/stores"
)

// receiving is a plan for a server whose WAL only wal-receive brings into the
// repository.
func receiving(major int, conf map[string]string) plan {
	all := map[string]string{"archive_mode": "off"}
	maps.Copy(all, conf)
	return plan{Options: harness.Options{Major: major, WALSegSizeMB: 1, Conf: all}}
}

// receiverEnv is the environment of a receiver on another host: it reaches the
// server as a role that has REPLICATION alone, has no data directory, and no key
// that opens what it stores.
func (s *site) receiverEnv(t testing.TB, port int, state string) []string {
	t.Helper()
	env := append([]string{
		s.where(), "AGENT_STATE_DIR=" + filepath.Join(s.base, state),
		"PGHOST=127.0.0.1", "PGPORT=" + strconv.Itoa(port), "PGUSER=streamer", "PGDATABASE=postgres",
	}, s.reach...)
	if s.recipient != "" {
		env = append(env, "AGENT_RECIPIENTS="+s.recipient)
	}
	return env
}

// receiver starts wal-receive with the slot "one", which is made if need be.
func (s *site) receiver(t testing.TB, args ...string) *harness.Process {
	t.Helper()
	return harness.StartAgent(t, s.receiverEnv(t, s.Port, "receiver"),
		append([]string{"wal-receive", "--slot", "one", "--create-slot", "--flush-interval", "200ms", "--log-level", "debug"}, args...)...)
}

const newStreamer = "CREATE ROLE streamer LOGIN REPLICATION"

// confirmed waits until the receiver has confirmed all WAL that there is.
func (s *site) confirmed(t testing.TB) {
	t.Helper()
	lsn := s.QueryString(t, "SELECT pg_current_wal_flush_lsn()::text")
	await(t, "the confirmation of "+lsn, func() bool {
		return s.QueryInt(t, "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'agent' AND flush_lsn >= $1::text::pg_lsn AND replay_lsn = flush_lsn", lsn) > 0
	})
}

// stopped asks a receiver to end, which must be a success.
func stopped(t testing.TB, p *harness.Process) {
	t.Helper()
	p.Signal(syscall.SIGTERM)
	if r := p.Wait(); r.Code != 0 {
		t.Errorf("the receiver ended with status %d:\n%s", r.Code, r.Stderr)
	}
}

// recovered restores the newest backup, lets it recover to the end and returns
// the server.
func (s *site) recovered(t testing.TB, major int) *harness.Server {
	t.Helper()
	dir := filepath.Join(harness.TempDir(t), "restored")
	must(t, s.restore(t, dir))
	r := harness.StartExisting(t, dir, major, nil, s.elsewhere()...)
	r.WaitRecovered(t)
	return r
}

// same compares each whole segment in the repository with the server's file,
// and fails if one between the first and the last is missing.
func (s *site) same(t *testing.T) (segments []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.repo, "cluster/*/wal/*/????????????????????????"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	for _, path := range found {
		name := filepath.Base(path)
		s.fetched(t, name, filepath.Join(s.DataDir, "pg_wal", name))
		segments = append(segments, name)
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(name[8:16]+name[21:], 16, 64) // of 1 MiB: three digits
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i := 1; i < len(segments); i++ {
		if number(segments[i]) != number(segments[i-1])+1 {
			t.Errorf("between %s and %s something is missing", segments[i-1], segments[i])
		}
	}
	return segments
}

// TestReceive recovers the last committed transaction, whose segment was never
// whole, of a server that archives nothing itself.
func TestReceive(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			plan := receiving(major, map[string]string{"wal_keep_size": "1GB"})
			plan.sealed = major == 18
			s := newSite(t, plan)
			s.Exec(t, newStreamer, "CREATE TABLE t (i int, m text)")
			p := s.receiver(t)
			s.confirmed(t)
			s.push(t) // its WAL is there, or it would not end
			s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 30000) g")
			s.confirmed(t)
			s.Exec(t, "INSERT INTO t VALUES (-1, 'the last')")
			s.confirmed(t)
			if got := s.same(t); len(got) < 3 {
				t.Errorf("only these segments are whole: %v", got)
			}
			s.Kill(t)
			await(t, "the loss of the server", func() bool { return strings.Contains(p.Stderr(), "will connect to the server again") })
			stopped(t, p)
			r := s.recovered(t, major)
			if n := r.QueryInt(t, "SELECT count(*) FROM t"); n != 30001 {
				t.Errorf("%d rows were recovered", n)
			}
		})
	}
}

// TestReceiveStops lets a receiver and its server end at the same time: what
// has come is stored, and the server does not wait.
func TestReceiveStops(t *testing.T) {
	t.Parallel()
	s := newSite(t, receiving(15, map[string]string{"wal_keep_size": "1GB"}))
	s.Exec(t, newStreamer, "CREATE TABLE t (i int)")
	p := s.receiver(t, "--flush-interval", "1h")
	await(t, "the connection", func() bool { return s.QueryInt(t, "SELECT count(*) FROM pg_stat_replication") == 1 })
	s.Exec(t, "INSERT INTO t VALUES (1)")
	s.Stop(t) // waits for all WAL to be confirmed, an hour if nothing hurries
	await(t, "the end of the connection", func() bool { return strings.Contains(p.Stderr(), "will connect to the server again") })
	s.Restart(t)
	await(t, "the next connection", func() bool { return s.QueryInt(t, "SELECT count(*) FROM pg_stat_replication") == 1 })
	s.Exec(t, "INSERT INTO t VALUES (2)")
	stopped(t, p)
	await(t, "the end of the slot's use", func() bool { return s.QueryInt(t, "SELECT count(*) FROM pg_replication_slots WHERE active") == 0 })
	restart := s.QueryString(t, "SELECT restart_lsn::text FROM pg_replication_slots")
	must(t, harness.Agent(t, s.receiverEnv(t, s.Port, "receiver"), "wal-receive", "--slot", "one", "--until-lsn", restart))
	must(t, harness.Agent(t, s.receiverEnv(t, s.Port, "receiver"), "wal-receive", "--slot", "one", "--once"))
	s.same(t)
}

// TestKillReceive kills a receiver again and again while WAL is written.
// Nothing is missing afterwards, and nothing contradicts.
func TestKillReceive(t *testing.T) {
	t.Parallel()
	s := newSite(t, receiving(15, map[string]string{"wal_keep_size": "1GB"}))
	s.Exec(t, newStreamer, "CREATE TABLE t (i int, m text)")
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 12 {
		p := s.receiver(t, "--flush-interval", "20ms")
		await(t, "the connection", func() bool { return ended(p) || strings.Contains(p.Stderr(), "receiving WAL") })
		timer := time.NewTimer(time.Duration(rnd.IntN(150)) * time.Millisecond)
		for waiting := true; waiting; {
			s.Exec(t, fmt.Sprintf("INSERT INTO t SELECT g, md5((g * %d)::text) FROM generate_series(1, 2000) g", i))
			select {
			case <-timer.C:
				waiting = false
			default:
			}
		}
		p.Signal(syscall.SIGKILL)
		if r := p.Wait(); r.Code != 137 {
			t.Fatalf("status %d:\n%s", r.Code, r.Stderr)
		}
	}
	must(t, harness.Agent(t, s.receiverEnv(t, s.Port, "receiver"), "wal-receive", "--slot", "one", "--once"))
	if got := s.same(t); len(got) < 3 {
		t.Errorf("only these segments are whole: %v", got)
	}
	// A second one with a slot of its own, from the beginning, agrees.
	must(t, harness.Agent(t, s.receiverEnv(t, s.Port, "other"), "wal-receive", "--slot", "two", "--create-slot", "--once"))
}

// TestReceiveTwo has two receivers and an archiver beside each other.
func TestReceiveTwo(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1, Conf: map[string]string{"wal_keep_size": "1GB"}}})
	s.Exec(t, newStreamer, "CREATE TABLE t (i int, m text)")
	one := s.receiver(t)
	two := harness.StartAgent(t, s.receiverEnv(t, s.Port, "other"), "wal-receive", "--slot", "two", "--create-slot", "--synchronous")
	await(t, "both", func() bool { return s.QueryInt(t, "SELECT count(*) FROM pg_stat_replication") == 2 })
	for range 5 {
		s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 5000) g")
		s.switchWAL(t)
	}
	refused := harness.Agent(t, s.receiverEnv(t, s.Port, "receiver"), "wal-receive", "--slot", "one")
	hinted(t, refused, 8, "slot one")
	stopped(t, one)
	stopped(t, two)
	s.same(t)
}

// TestReceiveSynchronous loses a primary for good: each commit that it has
// acknowledged is there.
func TestReceiveSynchronous(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, receiving(major, map[string]string{"wal_keep_size": "1GB"}))
			s.Exec(t, newStreamer, "CREATE TABLE t (i int)")
			p := s.receiver(t, "--synchronous")
			s.confirmed(t)
			s.push(t)
			s.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = 'agent'")
			s.Exec(t, "ALTER SYSTEM SET synchronous_commit = 'remote_apply'")
			s.Exec(t, "SELECT pg_reload_conf()")
			await(t, "the synchronous standby", func() bool {
				return s.QueryInt(t, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'") == 1
			})
			acknowledged := make(chan int)
			ctx := t.Context()
			conn, err := pgx.Connect(ctx, s.ConnInfo())
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer close(acknowledged)
				defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
				for i := 1; ; i++ {
					if _, err := conn.Exec(ctx, "INSERT INTO t VALUES ($1)", i); err != nil {
						return // the server was killed
					}
					acknowledged <- i
				}
			}()
			last := 0
			for i := range acknowledged {
				if last = i; i == 200 {
					s.Kill(t)
				}
			}
			stopped(t, p)
			if err := os.RemoveAll(s.DataDir); err != nil {
				t.Fatal(err)
			}
			if last < 200 {
				t.Fatalf("only %d commits", last)
			}
			r := s.recovered(t, major)
			if n := r.QueryInt(t, "SELECT count(*) FROM t WHERE i <= $1", last); n != int64(last) {
				t.Errorf("%d of %d acknowledged commits were recovered", n, last)
			}
		})
	}
}

// TestReceiveSlowStore has a store that takes longer for each object than the
// server waits for a sign of life. The connection stays.
func TestReceiveSlowStore(t *testing.T) {
	t.Parallel()
	gw := stores.StartVersityGW(t, stores.S3Options{})
	bucket := gw.NewBucket(t, stores.S3Bucket{})
	fault := stores.NewFaultProxy(t, strings.TrimPrefix(gw.URL, "http://"))
	reach := append(gw.Env(), "AWS_ENDPOINT_URL=http://"+fault.Address)
	p := receiving(15, map[string]string{"wal_sender_timeout": "3s", "wal_keep_size": "1GB"})
	p.url, p.reach = gw.RepositoryURL(bucket, "main"), reach
	s := newSite(t, p)
	s.Exec(t, newStreamer, "CREATE TABLE t (i int, m text)")
	agent := s.receiver(t)
	s.confirmed(t)
	pid := s.QueryInt(t, "SELECT pid FROM pg_stat_replication")
	fault.Latency(t, 4*time.Second)
	s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 40000) g") // more than may wait
	s.confirmed(t)
	if now := s.QueryInt(t, "SELECT pid FROM pg_stat_replication"); now != pid {
		t.Errorf("it had to connect again:\n%s", agent.Stderr())
	}
	fault.Heal()
	stopped(t, agent)
}

// TestReceivePromotion receives from a standby that is promoted, and follows
// it to its timeline.
func TestReceivePromotion(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, receiving(major, map[string]string{"wal_keep_size": "1GB"}))
			s.Exec(t, newStreamer, "CREATE TABLE t (i int, m text)")
			first := s.receiver(t)
			s.confirmed(t)
			s.push(t)
			stopped(t, first)
			standby := s.standby(t, major)
			p := harness.StartAgent(t, s.receiverEnv(t, standby.Port, "beside"),
				"wal-receive", "--slot", "one", "--create-slot", "--flush-interval", "100ms")
			s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 5000) g")
			lsn := s.QueryString(t, "SELECT pg_current_wal_flush_lsn()::text")
			await(t, "the standby's WAL", func() bool {
				return standby.QueryInt(t, "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= $1::text::pg_lsn", lsn) == 1
			})
			s.Kill(t)
			standby.Exec(t, "SELECT pg_promote()")
			standby.WaitRecovered(t)
			standby.Exec(t, "INSERT INTO t VALUES (-1, 'on the new timeline')")
			after := standby.QueryString(t, "SELECT pg_current_wal_flush_lsn()::text")
			await(t, "the new timeline's WAL", func() bool {
				return standby.QueryInt(t, "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= $1::text::pg_lsn", after) == 1
			})
			s.one(t, "cluster/*/history/00000002.history")
			stopped(t, p)
			r := s.recovered(t, major)
			if n := r.QueryInt(t, "SELECT count(*) FROM t"); n != 5001 {
				t.Errorf("%d rows were recovered", n)
			}
		})
	}
}

// standby restores the newest backup as a standby of the server.
func (s *site) standby(t testing.TB, major int) *harness.Server {
	t.Helper()
	return s.standbyOf(t, major, s.Port)
}

// standbyOf restores the newest backup as a standby that streams from a port.
func (s *site) standbyOf(t testing.TB, major, port int) *harness.Server {
	t.Helper()
	dir := filepath.Join(harness.TempDir(t), "standby")
	must(t, s.restore(t, dir))
	if err := os.Remove(filepath.Join(dir, "recovery.signal")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "standby.signal"), nil)
	return harness.StartExisting(t, dir, major, map[string]string{
		"primary_conninfo": fmt.Sprintf("host=127.0.0.1 port=%d user=streamer", port),
	}, s.elsewhere()...)
}

// TestReceiveRefusals says what is wrong, and what to do.
func TestReceiveRefusals(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, receiving(major, nil))
			s.Exec(t, newStreamer, "CREATE ROLE nobody LOGIN", "CREATE TABLE t (i int, m text)")
			env := s.receiverEnv(t, s.Port, "receiver")
			run := func(args ...string) harness.Result {
				return harness.Agent(t, env, append([]string{"wal-receive"}, args...)...)
			}
			hinted(t, run(), 2, "name of a replication slot")
			hinted(t, run("--slot", "Bad"), 2, "Bad")
			hinted(t, run("--slot", "one", "--flush-interval", "0s"), 2, "--flush-interval")
			hinted(t, run("--slot", "none"), 9, "none", "--create-slot")
			hinted(t, harness.Agent(t, append(slices.Clone(env), "PGUSER=nobody"), "wal-receive", "--slot", "one"), 9, "ALTER ROLE nobody REPLICATION")
			must(t, run("--slot", "one", "--create-slot", "--once"))

			// The server leads elsewhere one day.
			other := harness.Start(t, harness.Options{Major: major, NoFsync: true})
			other.Exec(t, newStreamer)
			hinted(t, harness.Agent(t, s.receiverEnv(t, other.Port, "receiver"), "wal-receive", "--slot", "one", "--create-slot", "--once"), 4, "another cluster")

			// The slot is dropped, and WAL goes.
			s.Exec(t, "SELECT pg_drop_replication_slot('one')")
			current := s.QueryString(t, "SELECT pg_walfile_name(pg_current_wal_lsn())")
			await(t, "the removal of "+current, func() bool {
				s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 5000) g", "SELECT pg_switch_wal()", "CHECKPOINT")
				return s.QueryInt(t, "SELECT count(*) FROM pg_ls_waldir() WHERE name = $1", current) == 0
			})
			hinted(t, run("--slot", "one", "--create-slot", "--once"), 9, "gap", "--allow-gap")
			if got := must(t, run("--slot", "one", "--create-slot", "--once", "--allow-gap")).Stderr; !strings.Contains(got, "there is a gap in the archive") {
				t.Errorf("the gap is not told:\n%s", got)
			}
		})
	}
}
