package main

import (
	"os"
	"slices"
	"strings"

	"agent/internal/config"
	"agent/internal/storage"
)

// fromEnvironment are the flags that say what the stores' own variables say
// here, for a server whose environment may be another. Credentials are not
// among them: the user is told that the server needs them.
func (a *app) fromEnvironment(cfg *config.Config) []string {
	var words, needed []string
	carry := func(have, flag string, variables ...string) {
		for _, v := range variables {
			if value := os.Getenv(v); value != "" && have == "" {
				words = append(words, "--"+flag+"="+shellQuote(value))
				return
			}
		}
	}
	need := func(variables ...string) {
		for _, v := range variables {
			if os.Getenv(v) != "" && !slices.Contains(needed, v) {
				needed = append(needed, v)
			}
		}
	}
	need("AGENT_REPOSITORIES") // which has no flag
	for _, r := range cfg.Repositories {
		scheme, _, _, err := storage.ParseURL(r.URL)
		if err != nil {
			continue
		}
		switch scheme {
		case storage.SchemeS3:
			if len(cfg.Repositories) == 1 {
				carry(r.S3Endpoint, "s3-endpoint", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
				carry(r.S3Region, "s3-region", "AWS_REGION", "AWS_DEFAULT_REGION")
				carry(r.S3Profile, "s3-profile", "AWS_PROFILE")
			} else {
				need("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
			}
			need("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE")
		case storage.SchemeGCS:
			need("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST")
		case storage.SchemeAzure:
			if len(cfg.Repositories) == 1 {
				carry(r.AzureAccount, "azure-account", "AZURE_STORAGE_ACCOUNT")
			} else {
				need("AZURE_STORAGE_ACCOUNT")
			}
			need("AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET")
		case storage.SchemeSFTP:
			need("AGENT_SFTP_PASSWORD", "AGENT_SFTP_PASSPHRASE", "SSH_AUTH_SOCK")
		}
	}
	if len(needed) > 0 {
		a.log.Warn("the restored server reads the repository too: give it these variables in its environment, as they are here",
			"variables", strings.Join(needed, " "))
	}
	return words
}
