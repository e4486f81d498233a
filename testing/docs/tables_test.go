package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/repo"
	"agent/internal/report"
)

// kinds are the names of errs' kinds, in their order.
var kinds = []string{
	"Other", "Usage", "Config", "NotInitialised", "Foreign", "Storage", "Damaged", "NotFound", "Locked", "Server",
	"Destination", "Identity", "NoSpace", "BadPages", "Conflict", "Interrupted", "Gap",
}

// TestExitCodes compares the first table of docs/exit-codes.md with errs, and
// looks for the codes of the two archiving commands.
func TestExitCodes(t *testing.T) {
	if last := errs.Gap; int(last) != len(kinds)-1 {
		t.Fatalf("errs has %d kinds, this test knows %d", last+1, len(kinds))
	}
	want := make(map[string]int)
	for k := errs.Other; k <= errs.Gap; k++ {
		want[kinds[k]] = k.ExitCode()
	}
	text := read(t, filepath.Join(root, "docs", "exit-codes.md"))
	got := make(map[string]int)
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d+) \\| `(\\w+)` \\|").FindAllStringSubmatch(text, -1) {
		code, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		got[m[2]] = code
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errs (-) and docs/exit-codes.md (+) differ:\n%s", diff)
	}
	source := read(t, filepath.Join(root, "cmd", "agent", "main.go"))
	constants := regexp.MustCompile(`(?m)^\s+exit(\w+) = (\d+)$`).FindAllStringSubmatch(source, -1)
	if len(constants) != 3 {
		t.Errorf("cmd/agent has %d codes of its own", len(constants))
	}
	_, fetch, _ := strings.Cut(text, "## wal-fetch")
	for _, c := range constants {
		if !strings.Contains(fetch, "\n| "+c[2]+" | ") {
			t.Errorf("exit%s, %s, is not in the table of wal-fetch", c[1], c[2])
		}
	}
}

// TestFields compares every table behind a comment "fields TYPE" with the JSON
// fields of that type.
func TestFields(t *testing.T) {
	types := map[string]reflect.Type{
		"report.Backup": reflect.TypeFor[report.Backup](),
		"repo.Backup":   reflect.TypeFor[repo.Backup](),
		"repo.Dropped":  reflect.TypeFor[repo.Dropped](),

		"report.WAL":           reflect.TypeFor[report.WAL](),
		"report.WALTimeline":   reflect.TypeFor[report.WALTimeline](),
		"report.WALRange":      reflect.TypeFor[report.WALRange](),
		"report.WALGap":        reflect.TypeFor[report.WALGap](),
		"report.WALRepository": reflect.TypeFor[report.WALRepository](),
		"report.Backlog":       reflect.TypeFor[report.Backlog](),
		"report.Verified":      reflect.TypeFor[report.Verified](),
		"report.Finding":       reflect.TypeFor[report.Finding](),

		"report.Deleted":           reflect.TypeFor[report.Deleted](),
		"report.DeletedBackup":     reflect.TypeFor[report.DeletedBackup](),
		"report.DeletedRepository": reflect.TypeFor[report.DeletedRepository](),
		"report.DeletedKind":       reflect.TypeFor[report.DeletedKind](),

		"report.BackupsVerified": reflect.TypeFor[report.BackupsVerified](),
		"report.BackupState":     reflect.TypeFor[report.BackupState](),
		"report.BackupFinding":   reflect.TypeFor[report.BackupFinding](),
		"report.LostBackup":      reflect.TypeFor[report.LostBackup](),
		"report.LostMoment":      reflect.TypeFor[report.LostMoment](),

		"report.Info":        reflect.TypeFor[report.Info](),
		"report.InfoPlace":   reflect.TypeFor[report.InfoPlace](),
		"report.InfoKind":    reflect.TypeFor[report.InfoKind](),
		"report.InfoGrowth":  reflect.TypeFor[report.InfoGrowth](),
		"report.InfoCost":    reflect.TypeFor[report.InfoCost](),
		"report.InfoShare":   reflect.TypeFor[report.InfoShare](),
		"report.InfoCluster": reflect.TypeFor[report.InfoCluster](),
		"report.InfoWindow":  reflect.TypeFor[report.InfoWindow](),
		"report.InfoBackup":  reflect.TypeFor[report.InfoBackup](),

		"report.Format":        reflect.TypeFor[report.Format](),
		"report.FormatKind":    reflect.TypeFor[report.FormatKind](),
		"report.FormatFinding": reflect.TypeFor[report.FormatFinding](),

		"repo.Cluster":      reflect.TypeFor[repo.Cluster](),
		"repo.Claim":        reflect.TypeFor[repo.Claim](),
		"repo.Pack":         reflect.TypeFor[repo.Pack](),
		"repo.Mark":         reflect.TypeFor[repo.Mark](),
		"repo.Horizon":      reflect.TypeFor[repo.Horizon](),
		"repo.Tomb":         reflect.TypeFor[repo.Tomb](),
		"repo.Verification": reflect.TypeFor[repo.Verification](),
		"config.Setting":    reflect.TypeFor[config.Setting](),
	}
	comment := regexp.MustCompile(`<!-- fields (\S+) -->\n((?:\|.*\n)+)`)
	seen := make(map[string]bool)
	for _, d := range documents(t) {
		for _, m := range comment.FindAllStringSubmatch(d.text, -1) {
			typ, ok := types[m[1]]
			if !ok {
				t.Errorf("%s: type %s is unknown to this test", d.name, m[1])
				continue
			}
			seen[m[1]] = true
			if diff := cmp.Diff(jsonFields(typ), tableFields(m[2])); diff != "" {
				t.Errorf("%s (-) and %s (+) differ:\n%s", m[1], d.name, diff)
			}
		}
	}
	if len(seen) != len(types) {
		t.Errorf("only %v are documented", seen)
	}
}

// jsonFields says of each field of a type what kind it is in JSON.
func jsonFields(typ reflect.Type) map[string]string {
	fields := make(map[string]string)
	for i := range typ.NumField() {
		name, options, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		kind := jsonKind(typ.Field(i).Type)
		if strings.Contains(options, "string") {
			kind = "string"
		}
		if strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero") {
			kind += ", optional"
		}
		fields[name] = kind
	}
	return fields
}

func jsonKind(typ reflect.Type) string {
	if _, ok := typ.MethodByName("MarshalText"); ok {
		return "string"
	}
	switch typ.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Pointer:
		return jsonKind(typ.Elem())
	case reflect.Slice:
		return "array of " + jsonKind(typ.Elem()) + "s"
	case reflect.Struct, reflect.Map:
		return "object"
	default:
		return "number"
	}
}

// tableFields reads the rows of a table; one may hold several names.
func tableFields(table string) map[string]string {
	fields := make(map[string]string)
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			kind := strings.TrimSpace(cells[2])
			if kind == "time" {
				kind = "string"
			}
			if regexp.MustCompile(`\boptional\b`).MatchString(strings.Join(cells[3:], "|")) {
				kind += ", optional"
			}
			fields[m[1]] = kind
		}
	}
	return fields
}

// TestMentions looks for everything that the texts say there is: documents,
// make targets, and settings.
func TestMentions(t *testing.T) {
	makefile := read(t, filepath.Join(root, "Makefile"))
	var keys []string
	for _, o := range config.Options() {
		keys = append(keys, o.Env)
	}
	keys = append(keys, "AGENT_CONFIG")
	for _, d := range documents(t) {
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`).FindAllStringSubmatch(d.text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(d.name), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", d.name, m[1], err)
			}
		}
		for _, m := range regexp.MustCompile("(?m)(?:^|`)make ([a-z -]+)").FindAllStringSubmatch(d.text, -1) {
			for _, target := range strings.Fields(m[1]) {
				if !strings.Contains(makefile, "\n"+target+":") {
					t.Errorf("%s: there is no make %s", d.name, target)
				}
			}
		}
		for _, name := range regexp.MustCompile(`\bAGENT_[A-Z0-9_]*[A-Z0-9]\b`).FindAllString(d.text, -1) {
			if !slices.Contains(keys, name) {
				t.Errorf("%s: there is no variable %s", d.name, name)
			}
		}
		for _, m := range regexp.MustCompile(`\(#([a-z0-9-]+)\)`).FindAllStringSubmatch(d.text, -1) {
			if !slices.Contains(anchors(d.text), m[1]) {
				t.Errorf("%s: there is no heading #%s", d.name, m[1])
			}
		}
	}
}

// TestNamedTests looks for every test, script and package that a text names.
func TestNamedTests(t *testing.T) {
	var source strings.Builder
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			source.WriteString(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, d := range documents(t) {
		for _, m := range regexp.MustCompile("`(Test[A-Z]\\w+)`").FindAllStringSubmatch(d.text, -1) {
			found++
			if !strings.Contains(source.String(), "\nfunc "+m[1]+"(") {
				t.Errorf("%s: there is no %s", d.name, m[1])
			}
		}
		for _, m := range regexp.MustCompile("`((?:internal|testing|cmd)/[a-z0-9/]+)`").FindAllStringSubmatch(d.text, -1) {
			found++
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
		}
		for _, list := range regexp.MustCompile("scripts? (`[a-z]+`(?:, `[a-z]+`)*)").FindAllStringSubmatch(d.text, -1) {
			for _, name := range regexp.MustCompile("[a-z]+").FindAllString(list[1], -1) {
				found++
				if _, err := os.Stat(filepath.Join(root, "cmd", "agent", "testdata", "script", name+".txtar")); err != nil {
					t.Errorf("%s: %v", d.name, err)
				}
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d names were found", found)
	}
}

// TestMessages looks in the code for the messages that the runbook explains;
// "…" stands for what is put into them.
func TestMessages(t *testing.T) {
	var source strings.Builder
	for _, dir := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				source.WriteString(read(t, path))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	_, table, _ := strings.Cut(read(t, filepath.Join(root, "docs", "restore.md")), "## What the messages mean")
	found := 0
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) < 3 || strings.Contains(cells[1], "PostgreSQL:") {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			found++
			for piece := range strings.SplitSeq(m[1], "…") {
				if piece = strings.TrimSpace(piece); !strings.Contains(source.String(), piece) {
					t.Errorf("docs/restore.md: no message says %q (%s)", piece, m[1])
				}
			}
		}
	}
	if found < 15 {
		t.Errorf("only %d messages were found", found)
	}
}

// anchors are the links that a text's headings make.
func anchors(text string) []string {
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

// TestNothingPrivate keeps paths of a developer's machine out of the texts.
func TestNothingPrivate(t *testing.T) {
	for _, d := range documents(t) {
		for _, bad := range []string{"/root/go", "/home/", "/tmp/"} {
			if i := strings.Index(d.text, bad); i >= 0 {
				t.Errorf("%s: %s", d.name, fmt.Sprintf("%.60q", d.text[i:]))
			}
		}
	}
}
