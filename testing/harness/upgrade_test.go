package harness

import (
	"testing"
)

// TestUpgrade upgrades a cluster, and reads in the new one what the old one had.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Major: 14, NoFsync: true})
	s.Exec(t, "CREATE TABLE a AS SELECT generate_series(1, 100) AS i")
	s.Stop(t)
	to := StartExisting(t, Upgrade(t, s, DefaultMajor, 0), DefaultMajor, nil)
	if n := to.QueryInt(t, "SELECT count(*) FROM a"); n != 100 {
		t.Errorf("%d rows", n)
	}
}
