package repo

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDescribeKey: each form of docs/format.md is known, and nothing else is
// taken for one.
func TestDescribeKey(t *testing.T) {
	const cluster = "cluster/07710217270864087352/"
	const name = "20261120T101530Z-k3v7qa"
	for key, want := range map[string]Object{
		"repository.json":   {Kind: KindRepository},
		"repository.json/x": {Kind: KindUnknown},
		"probe/x":           {Kind: KindProbe},
		"keys/x":            {Kind: KindReserved},
		"other":             {Kind: KindUnknown},
		"cluster/7710217270864087352/cluster.json":                                             {Kind: KindUnknown},
		cluster + "cluster.json":                                                               {Kind: KindCluster},
		cluster + "cluster.json/x":                                                             {Kind: KindUnknown},
		cluster + "wal/0000000100000000/000000010000000000000001":                              {Kind: KindWAL},
		cluster + "wal/0000000200000000/000000010000000000000001":                              {Kind: KindUnknown},
		cluster + "wal/0000000100000000/000000010000000000000001.00000028.backup":              {Kind: KindWAL},
		cluster + "wal/0000000100000000/000000010000000000000001.partial.0123456789abcdef":     {Kind: KindWAL},
		cluster + "wal/0000000100000000/000000010000000000000001.partial":                      {Kind: KindUnknown},
		cluster + "wal/0000000100000000/000000010000000000000001.zst":                          {Kind: KindUnknown},
		cluster + "summary/0000000100000000/000000010000000000000001":                          {Kind: KindSummary},
		cluster + "summary/0000000100000000/000000010000000000000001.partial.0123456789abcdef": {Kind: KindUnknown},
		cluster + "history/00000002.history":                                                   {Kind: KindHistory},
		cluster + "stream/00000001/0000000001000000-0000000001000100":                          {Kind: KindStream},
		cluster + "stream/00000001/0000000001000100-0000000001000000":                          {Kind: KindUnknown},
		cluster + "gap/00000001-000000010000000000000001-000000010000000000000002.json":        {Kind: KindGap},
		cluster + "gap/00000001.json":                                                          {Kind: KindUnknown},
		cluster + "claim/" + name + "/0":                                                       {Kind: KindClaim, Backup: name},
		cluster + "claim/" + name + "/ended":                                                   {Kind: KindClaim, Backup: name},
		cluster + "claim/" + name + "/01":                                                      {Kind: KindUnknown, Backup: name},
		cluster + "backup/" + name + "/backup.json":                                            {Kind: KindBackup, Backup: name},
		cluster + "backup/" + name + "/packs":                                                  {Kind: KindPacks, Backup: name},
		cluster + "backup/" + name + "/manifest":                                               {Kind: KindManifest, Backup: name},
		cluster + "backup/" + name + "/pack/0000000a":                                          {Kind: KindPack, Backup: name, Pack: 10},
		cluster + "backup/" + name + "/pack/0000000A":                                          {Kind: KindUnknown, Backup: name},
		cluster + "backup/" + name + "/other":                                                  {Kind: KindUnknown, Backup: name},
		cluster + "backup/x/backup.json":                                                       {Kind: KindUnknown},
		cluster + "mark/" + name + "/20261120T101530.123Z-keep-k3v7qa.json":                    {Kind: KindMark, Backup: name},
		cluster + "mark/" + name + "/x.json":                                                   {Kind: KindUnknown, Backup: name},
		cluster + "tomb/0123456789abcdef/0":                                                    {Kind: KindTomb},
		cluster + "tomb/0123456789abcdef/decided":                                              {Kind: KindTomb},
		cluster + "tomb/0123456789abcdef/ended":                                                {Kind: KindUnknown},
		cluster + "audit/x":                                                                    {Kind: KindReserved},
		cluster + "dump/x":                                                                     {Kind: KindReserved},
		cluster + "drill":                                                                      {Kind: KindUnknown},
		cluster + "horizon/00000001-000000010000000000000001.json":                             {Kind: KindHorizon},
		cluster + "horizon/00000002-000000010000000000000001.json":                             {Kind: KindUnknown},
		cluster + "horizon/00000001.json":                                                      {Kind: KindUnknown},
	} {
		want.Key = key
		got := DescribeKey(key)
		if want.Cluster = got.Cluster; strings.HasPrefix(key, cluster) {
			want.Cluster = 7710217270864087352
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: expected (-) and found (+) differ:\n%s", key, diff)
		}
	}
}

func TestPackBits(t *testing.T) {
	s := make(PackBits)
	for _, id := range []PackID{{"a", 0}, {"a", 63}, {"a", 64}, {"b", 1000}} {
		if s.Has(id) || !s.Add(id) || !s.Has(id) || s.Add(id) {
			t.Errorf("%v", id)
		}
	}
	if s.Has(PackID{"b", 999}) || s.Has(PackID{"c", 0}) || s.Has(PackID{"b", 1 << 20}) {
		t.Error("it has what was not added")
	}
}

// TestDocumentedKeys: every key of the table in docs/format.md is known, each as
// another kind.
func TestDocumentedKeys(t *testing.T) {
	text, err := os.ReadFile("../../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.NewReplacer("<id>", "07710217270864087352", "<tli>", "00000001", "<log>", "00000000", "<segment>", "000000010000000000000001",
		"<file>", "000000010000000000000001", "<first>", "000000010000000000000001", "<last>", "000000010000000000000001", "<start>", "0000000001000000",
		"<end>", "0000000001000001", "<backup>", "20261120T101530Z-k3v7qa", "<number>", "0000000a", "<n>", "0", "<tomb>", "0123456789abcdef",
		"<time>", "20261120T101530.123Z", "<kind>", "keep", "<random>", "k3v7qa")
	seen := make(map[ObjectKind]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:repository|cluster)[^`]+)`").FindAllStringSubmatch(string(text), -1) {
		o := DescribeKey(parts.Replace(m[1]))
		if o.Kind == KindUnknown || o.Kind == KindReserved || seen[o.Kind] != "" {
			t.Errorf("%s is of kind %s, like %q", m[1], o.Kind, seen[o.Kind])
		}
		seen[o.Kind] = m[1]
	}
	if len(seen) < 14 {
		t.Errorf("only these keys are documented: %v", seen)
	}
}
