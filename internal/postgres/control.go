package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"time"

	"agent/internal/errs"
)

// ControlFileSize is the length of global/pg_control in bytes
// (PG_CONTROL_FILE_SIZE in src/include/catalog/pg_control.h).
const ControlFileSize = 8192

// ControlPath is where the control file lies in a data directory.
const ControlPath = "global/pg_control"

// ErrControlVersion is a pg_control of no supported major. Of its fields only
// the system identifier can be read (ReadSystemIdentifier).
var ErrControlVersion = errors.New("its layout is of no supported PostgreSQL major")

// ErrControlCRC is a pg_control whose checksum is wrong. Of a running server
// that is most likely a read in the middle of a write.
var ErrControlCRC = errors.New("checksum of pg_control is wrong")

// ControlState is the state of the cluster (DBState in
// src/include/catalog/pg_control.h).
type ControlState int32

// The states.
const (
	StateStartup ControlState = iota
	StateShutdown
	StateShutdownInRecovery
	StateShuttingDown
	StateCrashRecovery
	StateArchiveRecovery
	StateInProduction
)

// String is what pg_controldata calls the state.
func (s ControlState) String() string {
	switch s {
	case StateStartup:
		return "starting up"
	case StateShutdown:
		return "shut down"
	case StateShutdownInRecovery:
		return "shut down in recovery"
	case StateShuttingDown:
		return "shutting down"
	case StateCrashRecovery:
		return "in crash recovery"
	case StateArchiveRecovery:
		return "in archive recovery"
	case StateInProduction:
		return "in production"
	default:
		return fmt.Sprintf("unrecognized state %d", int32(s))
	}
}

// WALLevel is the setting wal_level (src/include/access/xlog.h).
type WALLevel int32

// The levels.
const (
	WALLevelMinimal WALLevel = iota
	WALLevelReplica
	WALLevelLogical
)

// String is the value as postgresql.conf has it.
func (l WALLevel) String() string {
	switch l {
	case WALLevelMinimal:
		return "minimal"
	case WALLevelReplica:
		return "replica"
	case WALLevelLogical:
		return "logical"
	default:
		return fmt.Sprintf("wal_level %d", int32(l))
	}
}

// Control is the content of pg_control (ControlFileData and CheckPoint in
// src/include/catalog/pg_control.h). Times are UTC, to the second.
type Control struct {
	SystemIdentifier uint64
	ControlVersion   uint32
	CatalogVersion   uint32
	Major            int // from the versions; 0 for a 13 to 16 with a catalog version of none of them

	State      ControlState
	Time       time.Time // of the last update
	CheckPoint LSN       // of the last checkpoint's record

	// Of the last checkpoint.
	Redo           LSN
	Timeline       Timeline
	PrevTimeline   Timeline
	FullPageWrites bool
	NextXID        uint64 // epoch in the high half
	NextOID        uint32
	CheckPointTime time.Time

	UnloggedLSN         LSN
	MinRecoveryPoint    LSN
	MinRecoveryTimeline Timeline
	BackupStart         LSN
	BackupEnd           LSN
	BackupEndRequired   bool

	WALLevel             WALLevel
	WALLogHints          bool
	MaxConnections       int32
	MaxWorkerProcesses   int32
	MaxWALSenders        int32
	MaxPreparedXacts     int32
	MaxLocksPerXact      int32
	TrackCommitTimestamp bool

	BlockSize           uint32 // bytes
	RelSegBlocks        uint32 // blocks in a file of a large relation
	WALBlockSize        uint32 // bytes
	WALSegmentSize      SegmentSize
	DataChecksumVersion uint32 // 0: off, 1: on
}

// DataChecksums tells whether all data pages carry checksums that may be
// verified.
func (c *Control) DataChecksums() bool { return c.DataChecksumVersion == 1 }

// ParseControl reads the bytes of a control file of majors 13 to 18. It
// chooses the layout by pg_control_version and verifies the checksum: the
// error then wraps ErrControlCRC. A version of no supported major, another
// architecture's layout and sizes that PostgreSQL cannot have are errors too.
func ParseControl(b []byte) (*Control, error) {
	if len(b) < 16 {
		return nil, errs.New(errs.Damaged, "", "pg_control has only %d bytes", len(b))
	}
	version := binary.LittleEndian.Uint32(b[8:])
	crcAt, err := controlCRCOffset(version)
	if err != nil {
		return nil, err
	}
	if len(b) < crcAt+4 {
		return nil, errs.New(errs.Damaged, "", "pg_control has only %d bytes", len(b))
	}
	sum := crc32.Checksum(b[:crcAt], crc32.MakeTable(crc32.Castagnoli))
	if stored := binary.LittleEndian.Uint32(b[crcAt:]); sum != stored {
		return nil, errs.Wrap(ErrControlCRC, errs.Damaged, "", "pg_control stores %08X, its content has %08X", stored, sum)
	}
	c := decodeControl(b)
	if err := c.check(b); err != nil {
		return nil, err
	}
	return c, nil
}

// controlCRCOffset is where the checksum lies in the layout of a version.
func controlCRCOffset(version uint32) (int, error) {
	switch version {
	case 1300, 1700:
		return 288, nil
	case 1800:
		return 292, nil
	}
	if version&0xFFFF == 0 && version != 0 {
		v := bits.ReverseBytes32(version)
		return 0, errs.New(errs.Server, "Clusters of big-endian machines are not supported.", "pg_control is in big-endian byte order, version %d", v)
	}
	return 0, errs.Wrap(ErrControlVersion, errs.Server,
		fmt.Sprintf("This agent supports PostgreSQL %d to %d; use a version of it that knows this server.", MinMajor, MaxMajor),
		"pg_control has version %d", version)
}

// decodeControl reads the fields, which have the same place in all supported
// layouts: 17 put one into what was padding, 18 one behind all that are read.
func decodeControl(b []byte) *Control {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	i32 := func(at int) int32 { return int32(u32(at)) }
	lsn := func(at int) LSN { return LSN(binary.LittleEndian.Uint64(b[at:])) }
	unix := func(at int) time.Time { return time.Unix(int64(binary.LittleEndian.Uint64(b[at:])), 0).UTC() }
	c := &Control{
		SystemIdentifier: binary.LittleEndian.Uint64(b),
		ControlVersion:   u32(8),
		CatalogVersion:   u32(12),

		State:      ControlState(i32(16)),
		Time:       unix(24),
		CheckPoint: lsn(32),

		Redo:           lsn(40),
		Timeline:       Timeline(u32(48)),
		PrevTimeline:   Timeline(u32(52)),
		FullPageWrites: b[56] != 0,
		NextXID:        binary.LittleEndian.Uint64(b[64:]),
		NextOID:        u32(72),
		CheckPointTime: unix(104),

		UnloggedLSN:         lsn(128),
		MinRecoveryPoint:    lsn(136),
		MinRecoveryTimeline: Timeline(u32(144)),
		BackupStart:         lsn(152),
		BackupEnd:           lsn(160),
		BackupEndRequired:   b[168] != 0,

		WALLevel:             WALLevel(i32(172)),
		WALLogHints:          b[176] != 0,
		MaxConnections:       i32(180),
		MaxWorkerProcesses:   i32(184),
		MaxWALSenders:        i32(188),
		MaxPreparedXacts:     i32(192),
		MaxLocksPerXact:      i32(196),
		TrackCommitTimestamp: b[200] != 0,

		BlockSize:           u32(216),
		RelSegBlocks:        u32(220),
		WALBlockSize:        u32(224),
		WALSegmentSize:      SegmentSize(u32(228)),
		DataChecksumVersion: u32(252),
	}
	switch c.ControlVersion {
	case 1700:
		c.Major = 17
	case 1800:
		c.Major = 18
	default:
		if major, known := CatalogMajor(c.CatalogVersion); known && major < 17 {
			c.Major = major
		}
	}
	return c
}

// check refuses what no server of a supported platform writes; behind a right
// checksum that is another architecture's or a changed server's layout.
func (c *Control) check(b []byte) error {
	const hint = "This agent supports servers built for 64-bit little-endian machines."
	align := binary.LittleEndian.Uint32(b[204:])
	float := math.Float64frombits(binary.LittleEndian.Uint64(b[208:]))
	switch {
	case align != 8 || float != 1234567:
		return errs.New(errs.Server, hint, "pg_control has the layout of another architecture")
	case !powerOfTwo(c.BlockSize, 1<<10, 1<<15) || !powerOfTwo(c.WALBlockSize, 1<<10, 1<<16) || c.RelSegBlocks == 0:
		return errs.New(errs.Server, hint, "pg_control has impossible block sizes: data %d, WAL %d, blocks in a file %d",
			c.BlockSize, c.WALBlockSize, c.RelSegBlocks)
	case !c.WALSegmentSize.Valid():
		return errs.New(errs.Server, hint, "pg_control has an impossible WAL segment size of %d bytes", uint32(c.WALSegmentSize))
	}
	return nil
}

func powerOfTwo(v, low, high uint32) bool { return v >= low && v <= high && v&(v-1) == 0 }
