package e2e_test

import (
	"fmt"
	"strconv"
	"testing"

	"agent/testing/harness"
)

// TestIncremental: on every major a chain under load, made by a host that holds
// recipients alone, one incremental by each way to tell what has changed. Each
// of them restores to its own moment.
func TestIncremental(t *testing.T) {
	for _, major := range harness.Majors() {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			conf := map[string]string{"autovacuum_naptime": "1s"}
			detectors := []string{"summaries", "lsn", "auto"}
			if major >= 17 {
				conf["summarize_wal"] = "on"
				detectors = append(detectors, "server")
			}
			s := newSite(t, plan{Options: harness.Options{Major: major, WALSegSizeMB: 1 << (major % 5), Conf: conf}, sealed: major%2 == 0})
			s.Exec(t, loadTables("pg_default"), "CREATE TABLE still AS SELECT g AS i, repeat(md5(g::text), 20) AS m FROM generate_series(1, 20000) g", "VACUUM")
			work := startLoad(t, s.Server)
			work.more(t, 100)
			full := s.pushed(t)
			if full.Type != "full" {
				t.Fatalf("the first backup is %+v", full)
			}
			type moment struct {
				backup incremental
				rows   ledger
			}
			var chain []moment
			parent := full.Name
			for n, detector := range detectors {
				s.Exec(t, fmt.Sprintf("CREATE TABLE grown%d AS SELECT g FROM generate_series(1, 3000) g", n),
					fmt.Sprintf("UPDATE still SET m = 'changed' WHERE i %% 100 = %d", n),
					"DELETE FROM still WHERE i > 15000", "VACUUM still")
				work.more(t, 100)
				b := s.pushed(t, "--detect", detector)
				want := map[string]string{"summaries": "summaries", "lsn": "page-lsn", "auto": "summaries", "server": "server-summaries"}[detector]
				if b.Type != "incremental" || b.Parent != parent || b.Detector != want || b.Inherited == 0 {
					t.Fatalf("the backup by %s is %+v", detector, b)
				}
				parent = b.Name
				work.more(t, 50)
				chain = append(chain, moment{b, work.mark(t)})
			}
			work.stop(t)
			s.switchWAL(t)
			still := s.QueryString(t, "SELECT md5(string_agg(i || m, ',' ORDER BY i)) FROM still")
			s.Stop(t)
			for n, m := range chain {
				if n == 1 && len(chain) > 3 {
					continue // the machine has other tests to run, too
				}
				dir := fresh(t)
				must(t, s.restore(t, dir, m.backup.Name, "--target-time", target(m.rows.at), "--target-action", "promote"))
				verifyBackup(t, s.Server, dir)
				c := harness.StartExisting(t, dir, major, nil)
				if c.WaitRecovered(t) {
					t.Fatal("recovery is paused")
				}
				m.rows.check(t, c)
				healthy(t, c)
				if n == len(chain)-1 {
					if got := c.QueryString(t, "SELECT md5(string_agg(i || m, ',' ORDER BY i)) FROM still"); got != still {
						t.Error("the table that was hardly touched differs")
					}
				}
				c.Stop(t)
				checksums(t, c)
			}
		})
	}
}

// incremental is what the tests read of an incremental backup's JSON.
type incremental struct {
	backup
	Type      string   `json:"type"`
	Parent    string   `json:"parent"`
	Detector  string   `json:"detector"`
	Resumed   string   `json:"resumed"`
	Reasons   []string `json:"reasons"`
	Depth     int      `json:"depth"`
	Read      int64    `json:"read_bytes"`
	Inherited int64    `json:"inherited_bytes"`
	Data      int64    `json:"data_bytes"`
	Stored    int64    `json:"stored_bytes"`
}

// pushed takes a backup with more arguments.
func (s *site) pushed(t testing.TB, args ...string) incremental {
	t.Helper()
	r := must(t, s.agent(t, append([]string{"backup-push", "--json"}, args...)...))
	return parse[incremental](t, r.Stdout)
}
