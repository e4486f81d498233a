package check

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseCommand(t *testing.T) {
	for text, want := range map[string]command{
		"agent wal-push %p":           {program: "agent", push: true, path: true},
		"/usr/bin/agent wal-push %p ": {program: "/usr/bin/agent", push: true, path: true},
		"'/opt/my agent/agent' --config \"/etc/a b.yaml\" wal-push \"%p\"": {program: "/opt/my agent/agent", push: true, path: true},
		"AWS_SECRET_ACCESS_KEY=x agent wal-push %p":                        {program: "agent", push: true, path: true},
		"nice -n 10 timeout 60 agent wal-push %p":                          {program: "agent", push: true, path: true},
		"walagent-2 wal-push %p":                                           {program: "walagent-2", push: true, path: true},
		"agent wal-push %p >>/var/log/agent.log 2>&1":                      {program: "agent", push: true, path: true},
		"agent wal-push %p &>/dev/null":                                    {program: "agent", push: true, path: true},
		"test ! -f x && agent wal-push %p":                                 {program: "agent", push: true, path: true, operator: "&&"},
		"agent wal-push %p || true":                                        {program: "agent", push: true, path: true, operator: "||"},
		"agent wal-push %p; exit 0":                                        {program: "agent", push: true, path: true, operator: ";"},
		"agent wal-push %p | logger":                                       {program: "agent", push: true, path: true, operator: "|"},
		"agent wal-push %p &":                                              {program: "agent", push: true, path: true, operator: "&"},
		"agent wal-push %p\ntrue":                                          {program: "agent", push: true, path: true, operator: "\n"},
		"agent wal-push 'a;b&&c' %p":                                       {program: "agent", push: true, path: true},
		`agent wal-push a\;b %p`:                                           {program: "agent", push: true, path: true},
		"agent wal-push":                                                   {program: "agent", push: true},
		"agent wal-push %%p":                                               {program: "agent", push: true},
		"agent wal-push %%%p":                                              {program: "agent", push: true, path: true},
		"wal-g wal-push %p":                                                {program: "wal-g", path: true},
		"cp %p /archive/%f":                                                {program: "cp", path: true},
		"agent wal-fetch %p":                                               {program: "agent", path: true},
		"echo wal-push agent":                                              {program: "echo"},
		"true":                                                             {program: "true"},
		"":                                                                 {},
	} {
		if diff := cmp.Diff(want, parseCommand(text, "walagent-2"), cmp.AllowUnexported(command{})); diff != "" {
			t.Errorf("%q:\n%s", text, diff)
		}
	}
}

// FuzzShellWords: whatever a command is, it ends, and words are pieces of it.
func FuzzShellWords(f *testing.F) {
	for _, s := range []string{"agent wal-push %p", `a "b\"c" 'd;e' && f`, "2>&1 &", `\`, `"`, "a\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, operator := shellWords(s)
		total := 0
		for _, w := range words {
			total += len(w)
		}
		if total > len(s) {
			t.Errorf("%d bytes of words of %q", total, s)
		}
		if operator != "" && !strings.Contains(s, operator) {
			t.Errorf("%q has no %q", s, operator)
		}
		parseCommand(s, "agent")
	})
}

func TestProgramName(t *testing.T) {
	for word, want := range map[string]string{
		"/usr/bin/wal-g": "wal-g", "cp": "cp", "": "no program",
		"$(cat /secret)": "another program", strings.Repeat("x", 41): "another program",
	} {
		if got := programName(word); got != want {
			t.Errorf("%q is shown as %q, not %q", word, got, want)
		}
	}
}
