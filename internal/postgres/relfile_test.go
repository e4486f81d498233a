package postgres

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRelFileName(t *testing.T) {
	for name, want := range map[string]RelFile{
		"1259":                  {Filenode: 1259},
		"16384_fsm":             {Filenode: 16384, Fork: FSMFork},
		"16384_vm.1":            {Filenode: 16384, Fork: VMFork, SegmentNo: 1},
		"16384_init":            {Filenode: 16384, Fork: InitFork},
		"4294967295.31":         {Filenode: 4294967295, SegmentNo: 31},
		"t3_16384":              {Filenode: 16384, Temp: true},
		"t003_016384_vm.01":     {Filenode: 16384, Fork: VMFork, SegmentNo: 1, Temp: true},
		"t1_99999999999":        {Filenode: 4294967295, Temp: true},
		"t3_16384.0":            {Filenode: 16384, Temp: true},
		"t99999999999_16384_fs": {},
	} {
		got, ok := ParseRelFileName(name)
		if ok != (want != RelFile{}) {
			t.Errorf("%q: %v", name, ok)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", name, d)
		}
	}
}

// The two patterns of section 3.3 and 5.3 of our notes.
var (
	permanent = regexp.MustCompile(`^[1-9][0-9]*(_(fsm|vm|init))?(\.[1-9][0-9]*)?$`)
	temporary = regexp.MustCompile(`^t[0-9]+_[0-9]+(_(fsm|vm|init))?(\.[0-9]+)?$`)
)

func FuzzParseRelFileName(f *testing.F) {
	for _, name := range []string{
		"", "0", "01", "1", "1.", "1.0", "1.01", "1_", "1_main", "1_fsm_vm", "1_fsm.1.1", "4294967296", "1.4294967296", "-1", "+1", "1 ", "１",
		"t", "t1", "t1_", "t_1", "t1_1_", "tt1_1", "T1_1", "t1_1_init.7", "PG_VERSION", "pg_filenode.map", "pg_internal.init", "1_vm.old", "1259~",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r, ok := ParseRelFileName(name)
		want := permanent.MatchString(name) || temporary.MatchString(name)
		// Numbers of more than 32 bits match the pattern but are no relation.
		if ok && !want || !ok && want && len(name) < 10 || ok && r.Temp != temporary.MatchString(name) {
			t.Fatalf("ParseRelFileName(%q) = %+v, %v", name, r, ok)
		}
		if !ok && r != (RelFile{}) {
			t.Fatalf("%q is refused with %+v", name, r)
		}
	})
}

func TestClassifyPath(t *testing.T) {
	rel := func(spc, db, node uint32, fork Fork, seg uint32) FileClass {
		return FileClass{Relation: true, PageChecksums: true, Rel: RelFile{Tablespace: spc, Database: db, Filenode: node, Fork: fork, SegmentNo: seg}}
	}
	for path, want := range map[string]FileClass{
		"global/1260":        rel(1664, 0, 1260, MainFork, 0),
		"base/5/1259_vm":     rel(1663, 5, 1259, VMFork, 0),
		"base/16384/16400.2": rel(1663, 16384, 16400, MainFork, 2),
		"pg_tblspc/16390/PG_15_202209061/5/16391":   rel(16390, 5, 16391, MainFork, 0),
		"pg_tblspc/16390/PG_15_202209061/5/1_init":  rel(16390, 5, 1, InitFork, 0),
		"base/5/t3_16384":                           {TempRelation: true, Rel: RelFile{Tablespace: 1663, Database: 5, Filenode: 16384, Temp: true}},
		"pg_tblspc/9/PG_15_202209061/5/t3_16384_vm": {TempRelation: true, Rel: RelFile{Tablespace: 9, Database: 5, Filenode: 16384, Fork: VMFork, Temp: true}},
		"global/t3_16384":                           {},
		"global/pg_control":                         {},
		"global/pg_filenode.map":                    {},
		"base/5/PG_VERSION":                         {},
		"base/5/pg_internal.init":                   {},
		"base/1259":                                 {},
		"base/5/6/1259":                             {},
		"base/x/1259":                               {},
		"base/05/1259":                              {},
		"base/pgsql_tmp/1259":                       {},
		"1259":                                      {},
		"pg_xact/0000":                              {},
		"pg_xact/1000":                              {},
		"pg_multixact/offsets/1000":                 {},
		"pg_logical/snapshots/1":                    {},
		"pg_tblspc/16390/16391":                     {},
		"pg_tblspc/16390/5/16391":                   {},
		"pg_tblspc/16390/PG_15/5/16391":             {},
		"pg_tblspc/16390/PG_15_202209061/16391":     {},
		"pg_tblspc/x/PG_15_202209061/5/16391":       {},
		"global/sub/1260":                           {},
		"/base/5/1259":                              {},
		"base/5/":                                   {},
		"":                                          {},
	} {
		if d := cmp.Diff(want, ClassifyPath(path)); d != "" {
			t.Errorf("%q: %s", path, d)
		}
	}
	if got := ClassifyPath("base/5/16400_vm.2").Rel.FirstBlock(131072); got != 262144 {
		t.Errorf("FirstBlock = %d", got)
	}
}

func TestForkNames(t *testing.T) {
	var names []string
	for f := MainFork; f <= InitFork+1; f++ {
		names = append(names, f.String())
	}
	if got := strings.Join(names, " "); got != "main fsm vm init unknown" {
		t.Error(got)
	}
}

func TestTablespaceVersionDir(t *testing.T) {
	if got := TablespaceVersionDir(15, 202209061); got != "PG_15_202209061" || !isVersionDir(got) {
		t.Error(got)
	}
}
