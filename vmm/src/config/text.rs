//! Configurations as text: TOML, which people write, and JSON, which programs exchange. Both have the same keys.

use super::{ConfigError, VmConfig};

impl VmConfig {
    /// Reads a configuration from TOML. Keys that are left out have their defaults; [`validate`](Self::validate) judges
    /// the values.
    ///
    /// # Errors
    /// [`ConfigError::Text`]: what is wrong, and in which line.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Text(error.to_string()))
    }

    /// Reads a configuration from JSON, as [`from_toml`](Self::from_toml).
    ///
    /// # Errors
    /// [`ConfigError::Text`]: what is wrong, and in which line.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        serde_json::from_str(text).map_err(|error| ConfigError::Text(error.to_string()))
    }

    /// Writes the configuration as TOML that [`from_toml`](Self::from_toml) reads back.
    ///
    /// # Errors
    /// [`ConfigError::NotText`]: a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|error| ConfigError::NotText(error.to_string()))
    }

    /// Writes the configuration as JSON that [`from_json`](Self::from_json) reads back.
    ///
    /// # Errors
    /// [`ConfigError::NotText`]: a path is not UTF-8.
    pub fn to_json(&self) -> Result<String, ConfigError> {
        serde_json::to_string_pretty(self).map_err(|error| ConfigError::NotText(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::config::{Bytes, DiskConfig, ErrorKind, MemoryConfig, NetConfig};

    #[test]
    fn a_configuration_reads_back_as_itself_from_toml_and_from_json() {
        let disk = DiskConfig::new("/d").readonly(true);
        let config = VmConfig::new("/k")
            .name("one")
            .memory(MemoryConfig::new(Bytes::gib(2)).hugepages(true))
            .disk(disk.bandwidth(Bytes::mib(10)))
            .net(NetConfig::passt().tcp("8080:80"));
        let toml = config.to_toml().expect("it is text");
        assert!(toml.contains("size = \"2G\""), "{toml}");
        assert_eq!(VmConfig::from_toml(&toml).as_ref(), Ok(&config));
        let json = config.to_json().expect("it is text");
        assert_eq!(VmConfig::from_json(&json).as_ref(), Ok(&config));
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let text = "kernel = \"/k\"\n[memory]\nhugepages = true\n[[disk]]\npath = \"/d\"\n";
        let read = VmConfig::from_toml(text).expect("valid");
        let expected = VmConfig::new("/k")
            .memory(MemoryConfig::default().hugepages(true))
            .disk(DiskConfig::new("/d"));
        assert_eq!(read, expected);
        assert_eq!(VmConfig::from_json("{}"), Ok(VmConfig::default()));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (result, wrong) in [
            (VmConfig::from_toml("cpus = 1\nkernal = \"/k\"\n"), "kernal"),
            (
                VmConfig::from_json("{\"cpus\": 1,\n\"kernal\": \"/k\"}"),
                "kernal",
            ),
            (
                VmConfig::from_toml("cpus = 1\nmemory = { size = \"1Q\" }\n"),
                "1Q",
            ),
        ] {
            let error = result.expect_err("not valid");
            assert_eq!(error.kind(), ErrorKind::Config);
            let text = error.to_string();
            assert!(text.contains(wrong) && text.contains("line 2"), "{text}");
        }
    }

    #[test]
    fn a_path_that_is_no_text_is_an_error_and_no_panic() {
        let config = VmConfig::new(OsStr::from_bytes(b"/\xff"));
        for result in [config.to_toml(), config.to_json()] {
            assert!(matches!(result, Err(ConfigError::NotText(_))), "{result:?}");
        }
    }
}
