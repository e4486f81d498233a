package check

// Name names a check. Names are a contract (docs/check.md): checks may be
// added, none is renamed.
type Name string

// The checks, in the order of a report.
const (
	Config     Name = "config"
	Recipients Name = "keys.recipients"
	Identity   Name = "keys.identity"

	RepositoryOpen        Name = "repository.open"
	RepositoryID          Name = "repository.id"
	RepositoryPut         Name = "repository.put"
	RepositoryGet         Name = "repository.get"
	RepositoryRange       Name = "repository.range"
	RepositoryStat        Name = "repository.stat"
	RepositoryList        Name = "repository.list"
	RepositoryConditional Name = "repository.conditional"
	RepositoryRace        Name = "repository.race"
	RepositoryLock        Name = "repository.lock"
	RepositoryDelete      Name = "repository.delete"
	RepositoryVersions    Name = "repository.versions"
	RepositoryClock       Name = "repository.clock"
	RepositorySpace       Name = "repository.space"
	RepositoryLeftovers   Name = "repository.leftovers"
	RepositoryBehind      Name = "repository.behind"
	RepositoryCluster     Name = "repository.cluster"
	RepositoryPlace       Name = "repository.place"

	StateDirectory Name = "state.directory"
	StateID        Name = "state.id"
	StateSpace     Name = "state.space"
	StatePlace     Name = "state.place"

	ServerConnection     Name = "server.connection"
	ServerVersion        Name = "server.version"
	ServerRole           Name = "server.role"
	ServerGrants         Name = "server.grants"
	ServerWALLevel       Name = "server.wal_level"
	ServerArchiveMode    Name = "server.archive_mode"
	ServerFullPageWrites Name = "server.full_page_writes"
	ServerChecksums      Name = "server.data_checksums"
	ServerSegmentSize    Name = "server.wal_segment_size"
	ServerSummarizeWAL   Name = "server.summarize_wal"
	ServerArchiveCommand Name = "server.archive_command"
	ServerArchiver       Name = "server.archiver"
	ServerDataDirectory  Name = "server.data_directory"

	ArchivingSwitch  Name = "archiving.switch"
	ArchivingArrival Name = "archiving.arrival"
	ArchivingBacklog Name = "archiving.backlog"
	ArchivingGap     Name = "archiving.gap"
)

// Names lists all names in the order of a report.
func Names() []Name {
	return []Name{
		Config, Recipients, Identity,
		RepositoryOpen, RepositoryID, RepositoryPut, RepositoryGet, RepositoryRange, RepositoryStat, RepositoryList,
		RepositoryConditional, RepositoryRace, RepositoryLock, RepositoryDelete, RepositoryVersions, RepositoryClock,
		RepositorySpace, RepositoryLeftovers, RepositoryBehind, RepositoryCluster, RepositoryPlace,
		StateDirectory, StateID, StateSpace, StatePlace,
		ServerConnection, ServerVersion, ServerRole, ServerGrants, ServerWALLevel, ServerArchiveMode, ServerFullPageWrites,
		ServerChecksums, ServerSegmentSize, ServerSummarizeWAL, ServerArchiveCommand, ServerArchiver, ServerDataDirectory,
		ArchivingSwitch, ArchivingArrival, ArchivingBacklog, ArchivingGap,
	}
}

// Fact names something that a check measured. Names are a contract
// (docs/json.md), units are in them.
type Fact string

// The facts.
const (
	File             Fact = "file"                // text
	Encrypted        Fact = "encrypted"           // boolean
	PutMS            Fact = "put_ms"              // number
	GetMS            Fact = "get_ms"              // number
	Deletable        Fact = "deletable"           // boolean
	Lockable         Fact = "lockable"            // boolean
	LockMode         Fact = "lock_mode"           // text
	LockSeconds      Fact = "lock_seconds"        // number
	DefaultLock      Fact = "default_lock"        // text
	Versioned        Fact = "versioned"           // boolean
	SkewSeconds      Fact = "skew_seconds"        // number; positive: the store is ahead of this host
	FreeBytes        Fact = "free_bytes"          // number
	Objects          Fact = "objects"             // number
	Uncounted        Fact = "uncounted"           // boolean
	Since            Fact = "since"               // time
	VersionNum       Fact = "version_num"         // number
	SystemIdentifier Fact = "system_identifier"   // text
	InRecovery       Fact = "in_recovery"         // boolean
	Value            Fact = "value"               // text
	Waiting          Fact = "waiting"             // number
	FailedCount      Fact = "failed_count"        // number
	LastArchived     Fact = "last_archived"       // time
	LastFailed       Fact = "last_failed"         // time
	Segment          Fact = "segment"             // text
	ElapsedSeconds   Fact = "elapsed_seconds"     // number
	Clusters         Fact = "clusters"            // number; others than the server's
	WaitingBytes     Fact = "waiting_bytes"       // number
	OldestSeconds    Fact = "oldest_seconds"      // number
	MadePerSecond    Fact = "made_per_second"     // number; bytes
	DonePerSecond    Fact = "archived_per_second" // number; bytes
	FullInSeconds    Fact = "full_in_seconds"     // number
	DroppedRanges    Fact = "dropped_ranges"      // number
)

// FactNames lists all facts.
func FactNames() []Fact {
	return []Fact{
		File, Encrypted, PutMS, GetMS, Deletable, Lockable, LockMode, LockSeconds, DefaultLock, Versioned, SkewSeconds, FreeBytes,
		Objects, Uncounted, Since, VersionNum, SystemIdentifier, InRecovery, Value, Waiting, FailedCount, LastArchived, LastFailed,
		Segment, ElapsedSeconds, Clusters, WaitingBytes, OldestSeconds, MadePerSecond, DonePerSecond, FullInSeconds, DroppedRanges,
	}
}
