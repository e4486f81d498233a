package postgres

import (
	"context"

	"agent/internal/errs"
)

// NextXID is the transaction id that no transaction has got yet, with its
// epoch in the high half: whatever commits with this id or a later one commits
// after now. It fails on a standby.
func (s *Server) NextXID(ctx context.Context) (uint64, error) {
	var xid int64
	err := s.row(ctx, `SELECT txid_snapshot_xmax(txid_current_snapshot())`, nil, &xid)
	if err != nil {
		return 0, serverError(err, "read the next transaction id", "")
	}
	if xid <= 0 {
		return 0, errs.New(errs.Server, "", "the server has an impossible next transaction id %d", xid)
	}
	return uint64(xid), nil
}
