package postgres

import (
	"context"
	"strconv"

	"agent/internal/errs"
)

// NextXID is the transaction id that no transaction has got yet, with its
// epoch in the high half: whatever commits with this id or a later one commits
// after now.
//
// On a standby the snapshot knows what has been replayed, while pages may
// already hold what the record that is being replayed now does. The counter of
// transactions, from which age measures, is moved on before a record is
// replayed (ApplyWalRecord in src/backend/access/transam/xlogrecovery.c), so the
// id is taken from it there.
func (s *Server) NextXID(ctx context.Context) (uint64, error) {
	var xid, age int64
	var recovery bool
	err := s.row(ctx, `SELECT txid_snapshot_xmax(txid_current_snapshot()), age($1::text::xid)::bigint, pg_is_in_recovery()`,
		[]any{strconv.Itoa(firstNormalXID)}, &xid, &age, &recovery)
	if err != nil {
		return 0, serverError(err, "read the next transaction id", "")
	}
	if xid <= 0 {
		return 0, errs.New(errs.Server, "", "the server has an impossible next transaction id %d", xid)
	}
	if !recovery {
		return uint64(xid), nil
	}
	return counterAfter(uint64(xid), firstNormalXID+uint32(age)), nil
}

// firstNormalXID is the first id that transactions get (FirstNormalTransactionId
// in src/include/access/transam.h).
const firstNormalXID = 3

// counterAfter adds the epoch to a transaction counter that is not behind xid.
func counterAfter(xid uint64, counter uint32) uint64 { return xid + uint64(counter-uint32(xid)) }
