package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// DefaultMajor is the major that a test gets without asking: Debian's own, with
// all client tools.
const DefaultMajor = 15

// Majors returns the majors of PostgreSQL that are tested, ascending.
func Majors() []int { return []int{13, 14, 15, 16, 17, 18} }

// CacheDir returns the folder in which testing/install keeps servers and tools,
// by the rule of testing/install/lib.sh.
func CacheDir() (string, error) {
	if dir := os.Getenv("AGENT_TEST_CACHE"); dir != "" {
		return dir, nil
	}
	if os.Getuid() == 0 {
		return "/var/cache/walagent", nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(home, ".cache", "walagent"), nil
}

// debianBin is where Debian's packages put a major's programs.
func debianBin(major int) string {
	return filepath.Join("/usr/lib/postgresql", strconv.Itoa(major), "bin")
}

// binDirs lists the folders that may hold a major's programs, best first. The
// pinned servers of the cache win over whatever version the system has.
func binDirs(major int) ([]string, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	return []string{
		filepath.Join(cache, "pg", strconv.Itoa(major), "bin"),
		debianBin(major),
	}, nil
}

// findProgram returns the path of a program of the major.
func findProgram(major int, name string) (string, error) {
	dirs, err := binDirs(major)
	if err != nil {
		return "", err
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	install := installAll
	if major == DefaultMajor {
		install = installBase
	}
	return "", fmt.Errorf("%s of PostgreSQL %d is not installed: run %s", name, major, install)
}

// findTool returns the path of a client program: the major's own, else that of
// the default major.
func findTool(major int, name string) (string, error) {
	path, err := findProgram(major, name)
	if err != nil && major != DefaultMajor {
		path, err = findProgram(DefaultMajor, name)
	}
	return path, err
}
