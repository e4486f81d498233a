package e2e_test

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// TestTargets recovers to every kind of target, from one history: row i of
// table a was committed by transaction i.
func TestTargets(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1}})
	s.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	b := s.push(t)
	conn := s.Conn(t)
	var xids []string
	commit := func(i int) {
		var xid string
		if err := conn.QueryRow(t.Context(), "INSERT INTO a VALUES ($1) RETURNING pg_current_xact_id()::text", i).Scan(&xid); err != nil {
			t.Fatal(err)
		}
		xids = append(xids, xid)
	}
	commit(2)
	commit(3)
	at := serverTime(t, s.Server)
	position := insertLSN(t, s.Server).String()
	s.Exec(t, "SELECT pg_create_restore_point('the moment')")
	commit(4)
	commit(5)
	s.switchWAL(t)
	s.Stop(t)

	for _, c := range []struct {
		name string
		args []string
		rows int64
		live bool // promoted without being asked
	}{
		{"end", nil, 5, true},
		{"time", []string{"--target-time", target(at)}, 3, false},
		{"lsn", []string{"--target-lsn", position}, 3, false},
		{"xid", []string{"--target-xid", xids[1]}, 3, false},
		{"before xid", []string{"--target-xid", xids[1], "--target-inclusive=false"}, 2, false},
		{"name", []string{"--target-name", "the moment"}, 3, false},
		{"immediate", []string{"--target-immediate"}, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := fresh(t)
			r := must(t, s.restore(t, append([]string{dir}, c.args...)...))
			if !strings.Contains(r.Stdout, b.Name) {
				t.Errorf("the backup is not named:\n%s", r.Stdout)
			}
			srv := harness.StartExisting(t, dir, s.Major, nil)
			if paused := srv.WaitRecovered(t); paused == c.live {
				t.Errorf("paused: %v", paused)
			}
			if got := srv.QueryInt(t, "SELECT count(*) FROM a"); got != c.rows {
				t.Errorf("%d rows, not %d", got, c.rows)
			}
			if c.live {
				return
			}
			srv.Exec(t, "SELECT pg_wal_replay_resume()")
			if srv.WaitRecovered(t) {
				t.Error("still paused")
			}
			srv.Exec(t, "INSERT INTO a VALUES (0)")
		})
	}
	t.Run("shutdown", func(t *testing.T) {
		dir := fresh(t)
		must(t, s.restore(t, dir, "--target-name", "the moment", "--target-action", "shutdown"))
		c, err := harness.TryStart(t, dir, s.Major, nil)
		if err == nil { // it took connections first
			c.WaitExit(t)
		}
		if !exists(filepath.Join(dir, "recovery.signal")) {
			t.Error("recovery.signal is gone, so that the server would not stop there again")
		}
	})
	t.Run("never reached", func(t *testing.T) {
		dir := fresh(t)
		must(t, s.restore(t, dir, "--target-name", "nowhere"))
		c, err := harness.TryStart(t, dir, s.Major, nil)
		if err == nil {
			_, err = c.AwaitRecovery(t)
		}
		if err == nil || !strings.Contains(err.Error(), "before configured recovery target was reached") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("before the backup", func(t *testing.T) {
		hinted(t, s.restore(t, fresh(t), "--target-lsn", b.StartLSN), 7, b.Name)
		hinted(t, s.restore(t, fresh(t), "--target-time", "2020-01-01 00:00:00+00"), 7, b.Name)
		hinted(t, s.restore(t, fresh(t), b.Name, "--target-lsn", b.StartLSN), 2, b.Name)
	})
	t.Run("two targets", func(t *testing.T) {
		hinted(t, s.restore(t, fresh(t), "--target-lsn", position, "--target-name", "x"), 2, "--target-lsn", "--target-name")
	})
}

// TestTimelines lets a restored server take over, archive on timeline 2 and be
// backed up there, and then goes back to either timeline.
func TestTimelines(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{sealed: true, Options: harness.Options{WALSegSizeMB: 1}})
	s.Exec(t, "CREATE TABLE a (i int, tli int)", "INSERT INTO a VALUES (1, 1)")
	first := s.push(t)
	s.Exec(t, "INSERT INTO a VALUES (2, 1)", "SELECT pg_create_restore_point('fork')", "INSERT INTO a VALUES (3, 1)")
	s.switchWAL(t)
	late := s.push(t) // on timeline 1, behind the fork
	s.Exec(t, "INSERT INTO a VALUES (4, 1)")
	s.switchWAL(t)
	s.Stop(t)

	dir := fresh(t)
	r := must(t, s.restore(t, dir, "--target-name", "fork", "--target-action", "promote", "--take-over", first.Name))
	if strings.Contains(r.Stdout, "archive_mode=off") {
		t.Errorf("archiving is said to be off:\n%s", r.Stdout)
	}
	two := *s
	two.Server = harness.StartExisting(t, dir, s.Major, nil)
	two.WaitRecovered(t)
	if got := two.QueryString(t, "SHOW archive_mode"); got != "on" {
		t.Errorf("archive_mode is %s after --take-over", got)
	}
	two.Exec(t, "INSERT INTO a VALUES (5, 2)")
	second := two.push(t)
	if second.Timeline != 2 {
		t.Errorf("the second backup is on timeline %d", second.Timeline)
	}
	two.Exec(t, "INSERT INTO a VALUES (6, 2)")
	two.switchWAL(t)
	two.Stop(t)
	s.one(t, "cluster/*/history/00000002.history")

	for _, c := range []struct {
		name, backup string
		args         []string
		rows         string
		timeline     int64
	}{
		{"latest", second.Name, nil, "1 2 5 6", 3},
		{"2", second.Name, []string{"--target-timeline", "2"}, "1 2 5 6", 3},
		{"1", late.Name, []string{"--target-timeline", "1"}, "1 2 3 4", 3},
		{"from the first backup", first.Name, []string{first.Name}, "1 2 5 6", 3},
		{"its own", first.Name, []string{first.Name, "--target-timeline", "current"}, "1 2 3 4", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := fresh(t)
			r := must(t, s.restore(t, append([]string{to}, c.args...)...))
			if !strings.Contains(r.Stdout, "restored backup "+c.backup+" into") {
				t.Errorf("the backup is not %s:\n%s", c.backup, r.Stdout)
			}
			srv := harness.StartExisting(t, to, s.Major, nil)
			srv.WaitRecovered(t)
			if diff := cmp.Diff(c.rows, srv.QueryString(t, "SELECT string_agg(i::text, ' ' ORDER BY i) FROM a")); diff != "" {
				t.Error(diff)
			}
			if got := srv.QueryInt(t, "SELECT timeline_id FROM pg_control_checkpoint()"); got != c.timeline {
				t.Errorf("it is on timeline %d", got)
			}
		})
	}
	t.Run("off the path", func(t *testing.T) {
		hinted(t, s.restore(t, fresh(t), late.Name, "--target-timeline", "2"), 2, late.Name)
		hinted(t, s.restore(t, fresh(t), "--target-timeline", strconv.Itoa(7)), 7, fmt.Sprint(7))
	})
}
