package postgres

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"agent/internal/errs"
)

// What pg_basebackup -R writes into primary_conninfo, of several majors, is
// understood; what the server must not see is not sent to it.
func TestPrimaryConnInfo(t *testing.T) {
	config, err := pgx.ParseConfig(`user=rep passfile='/nowhere/.pgpass' channel_binding=prefer host=db1 port=5433 sslmode=prefer sslnegotiation=postgres
		sslcompression=0 sslcertmode=allow sslsni=1 ssl_min_protocol_version=TLSv1.2 gssencmode=prefer krbsrvname=postgres gssdelegation=0
		target_session_attrs=any load_balance_hosts=disable keepalives=1 keepalives_idle=30 tcp_user_timeout=9
		fallback_application_name=walreceiver replication=true application_name=second options='-c geqo=off'`)
	if err != nil {
		t.Fatal(err)
	}
	dropLibpqKeywords(config)
	for name := range config.RuntimeParams {
		if name != "application_name" && name != "options" {
			t.Errorf("%s is sent to the server", name)
		}
	}
	for _, strict := range []string{"gssencmode=require", "ssl_min_protocol_version=TLSv1.3", "requirepeer=postgres", "sslcrl=/crl"} {
		config, err := pgx.ParseConfig("host=db1 " + strict)
		if err != nil {
			t.Fatal(err)
		}
		dropLibpqKeywords(config)
		name, value, _ := strings.Cut(strict, "=")
		if config.RuntimeParams[name] != value {
			t.Errorf("%s is forgotten", strict)
		}
	}
}

func TestConnectPrimaryErrors(t *testing.T) {
	if _, err := ConnectPrimary(t.Context(), "host=h password=hunter2 sslmode=maybe", "x"); errs.KindOf(err) != errs.Config || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
	_, err := ConnectPrimary(t.Context(), "host=/nonexistent port=1 user=bob password=hunter2", "x")
	if errs.KindOf(err) != errs.Server || !strings.Contains(err.Error(), `database "postgres" as user "bob"`) || strings.Contains(err.Error()+errs.HintOf(err), "hunter2") {
		t.Errorf("%v", err)
	}
}

func TestRequireCluster(t *testing.T) {
	standby := Info{SystemIdentifier: 7}
	if err := (Info{SystemIdentifier: 7}).RequireCluster(standby); err != nil {
		t.Error(err)
	}
	if err := (Info{SystemIdentifier: 8}).RequireCluster(standby); errs.KindOf(err) != errs.Foreign || errs.HintOf(err) == "" {
		t.Error(err)
	}
}

// The epoch of a transaction counter follows from an id before it.
func TestCounterAfter(t *testing.T) {
	for _, c := range []struct {
		xid     uint64
		counter uint32
		want    uint64
	}{
		{700, 700, 700},
		{700, 705, 705},
		{5<<32 | 0xFFFFFFFE, 4, 6<<32 | 4},
		{5<<32 | 3, 3, 5<<32 | 3},
	} {
		if got := counterAfter(c.xid, c.counter); got != c.want {
			t.Errorf("%#x, %#x: %#x, not %#x", c.xid, c.counter, got, c.want)
		}
	}
}
