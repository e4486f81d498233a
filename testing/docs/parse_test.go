// Package docs_test keeps the documentation true: its commands are run on a
// real server, and its tables are compared with the code. CONTRIBUTING.md says
// how a block is marked.
package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// block is a runnable block of a document.
type block struct {
	line   int    // of its first command
	script string // commands
	output string // what it must print; only if checks is true
	checks bool
}

// document is a text and its runnable blocks.
type document struct {
	name   string // relative to the project's folder
	text   string
	blocks []block
	stores []string // kinds of servers that its commands need
}

// storeComment asks for a server.
var storeComment = regexp.MustCompile(`(?m)^<!-- store (\w+) -->$`)

// documents returns all texts for users and contributors.
func documents(t *testing.T) []document {
	t.Helper()
	paths := []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
	more, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range more {
		paths = append(paths, "docs/"+filepath.Base(p))
	}
	all := make([]document, 0, len(paths))
	for _, p := range paths {
		text, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		d := document{name: p, text: string(text)}
		if d.blocks, err = parse(d.text); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		for _, m := range storeComment.FindAllStringSubmatch(d.text, -1) {
			d.stores = append(d.stores, m[1])
		}
		all = append(all, d)
	}
	return all
}

// parse finds the runnable blocks and the outputs behind them.
func parse(text string) ([]block, error) {
	var blocks []block
	lines := strings.Split(text, "\n")
	until := func(i int, end string) (body string, next int, err error) {
		for j := i; j < len(lines); j++ {
			if lines[j] == end {
				return strings.Join(lines[i:j], "\n") + "\n", j + 1, nil
			}
		}
		return "", 0, fmt.Errorf("line %d: a block has no end", i)
	}
	for i := 0; i < len(lines); {
		var body string
		var err error
		at := i
		switch line := lines[i]; {
		case line == "<!-- sh test":
			body, i, err = until(i+1, "-->")
			blocks = append(blocks, block{line: at + 2, script: body})
		case line == "```sh test":
			body, i, err = until(i+1, "```")
			blocks = append(blocks, block{line: at + 2, script: body})
		case line == "```text output":
			if len(blocks) == 0 || blocks[len(blocks)-1].checks {
				return nil, fmt.Errorf("line %d: an output without commands before it", i+1)
			}
			b := &blocks[len(blocks)-1]
			b.output, i, err = until(i+1, "```")
			b.checks = true
		case strings.HasPrefix(line, "```"):
			_, i, err = until(i+1, "```")
		default:
			i++
		}
		if err != nil {
			return nil, err
		}
	}
	return blocks, nil
}

// fits compares what was printed with what a document shows, in which a line
// "..." stands for any lines.
func fits(shown, printed string) bool {
	var expr strings.Builder
	for line := range strings.Lines(shown) {
		if strings.TrimSpace(line) == "..." {
			expr.WriteString(`(?:.*\n)*`)
			continue
		}
		expr.WriteString(regexp.QuoteMeta(line))
	}
	return regexp.MustCompile(`\A` + expr.String() + `\z`).MatchString(printed)
}

func TestParse(t *testing.T) {
	text := "a\n```sh\nno\n```\n<!-- sh test\nset up\n-->\n```sh test\none\ntwo\n```\n\n```text output\nA\n...\nZ\n```\n"
	blocks, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []block{{line: 6, script: "set up\n"}, {line: 9, script: "one\ntwo\n", output: "A\n...\nZ\n", checks: true}}
	if len(blocks) != 2 || blocks[0] != want[0] || blocks[1] != want[1] {
		t.Errorf("got %+v, want %+v", blocks, want)
	}
	for _, bad := range []string{"```sh test\nx\n", "```text output\nx\n```\n"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for printed, ok := range map[string]bool{"A\nZ\n": true, "A\nb\nc\nZ\n": true, "A\nb\n": false, "x\nA\nZ\n": false, "A\nZ\nx\n": false} {
		if got := fits(want[1].output, printed); got != ok {
			t.Errorf("fits(%q) = %v", printed, got)
		}
	}
}
