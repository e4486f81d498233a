package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"agent/internal/errs"
)

// primaryConnect is how long one address of the primary may take to answer: a
// backup on a standby asks again.
const primaryConnect = 15 * time.Second

// PrimaryConnInfo is the setting primary_conninfo: how a standby connects to the
// server that it streams from. It may hold a password. That there is none, as
// where a standby lives of the archive, is an error. The role needs
// PrivilegeSettings.
func (s *Server) PrimaryConnInfo(ctx context.Context) (string, error) {
	var conninfo string
	err := s.row(ctx, `SELECT current_setting('primary_conninfo')`, nil, &conninfo)
	if err == nil && conninfo == "" {
		return "", errs.New(errs.Server, "Give the agent the setting primary_conninfo (--primary): how a role that may run pg_switch_wal connects to the primary.",
			"the standby has no primary_conninfo")
	}
	return conninfo, serverError(err, "read primary_conninfo", s.denied(PrivilegeSettings))
}

// RequireCluster is an error unless the primary that conninfo led to is of the
// standby's cluster.
func (i Info) RequireCluster(standby Info) error {
	if i.SystemIdentifier == standby.SystemIdentifier {
		return nil
	}
	return errs.New(errs.Foreign, "Correct the setting primary_conninfo of the agent (--primary), or without it that of the standby.",
		"what primary_conninfo leads to is cluster %d, the standby is of cluster %d", i.SystemIdentifier, standby.SystemIdentifier)
}

// ConnectPrimary is Connect for the primary of a standby: of several hosts the
// one that is no standby is taken, and a standby alone is an error. What
// streams from a primary names no database, which is postgres then.
func ConnectPrimary(ctx context.Context, conninfo, appName string) (*Server, error) {
	config, err := pgx.ParseConfig(conninfo)
	if err != nil {
		return nil, ConnInfoError(err)
	}
	if config.Database == "" {
		config.Database = "postgres"
	}
	dropLibpqKeywords(config)
	// A standby names itself, for synchronous_standby_names.
	delete(config.RuntimeParams, "application_name")
	config.ConnectTimeout = min(config.ConnectTimeout, primaryConnect)
	config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary
	s, err := connect(ctx, config, appName)
	if errors.Is(err, pgconn.ErrStandbyConnection) {
		return nil, errs.New(errs.Server, "Where a standby streams from another standby, the setting primary_conninfo of the agent (--primary) leads to the primary.",
			"connect to %s: it is a standby, too", address(config))
	}
	return s, err
}

// dropLibpqKeywords removes the parameters of libpq that the driver does not
// know and would send to the server, which refuses them. pg_basebackup writes
// most of them into primary_conninfo (PostgreSQL documentation, 34.1.2). Those
// with which somebody asks for more security than the driver gives stay, and
// are refused.
func dropLibpqKeywords(config *pgx.ConnConfig) {
	for _, name := range []string{
		"authtype", "fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "keepalives", "keepalives_count", "keepalives_idle",
		"keepalives_interval", "load_balance_hosts", "replication", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcompression",
		"sslkeylogfile", "tcp_user_timeout", "tty",
	} {
		if v := config.RuntimeParams[name]; v != "require" && v != "TLSv1.3" {
			delete(config.RuntimeParams, name)
		}
	}
}
